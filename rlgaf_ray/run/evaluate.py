"""``rlgaf evaluate``: compare finished runs with the SFT model, swept over temperature, in quality and diversity.

A lower temperature alone raises quality and lowers diversity ("Language GANs Falling Short", arXiv 1811.02549): an
adversarial model is better only if it is above the curves of the SFT model and of SFT on the same demonstrations. All
models are sampled by the first run's engine under its ``rollout.top_p`` and ``top_k``, on the same prompts with the
same seeds: those of the validation split, or with ``--test`` those of the test split, which only ``rlgaf compare``
reads too. ``eval/real_nll`` is computed at each temperature, unlike that of a run, which is at 1; perplexities under
the SFT model are at 1.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel

from rlgaf_ray import __version__
from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.actors.warmup import prepare_warmups
from rlgaf_ray.config import Config, load_config, uri
from rlgaf_ray.config.warmup import SftWarmup
from rlgaf_ray.data.storage import Place, writing
from rlgaf_ray.data.task import TaskSource, evaluation_set
from rlgaf_ray.engines.build import build_engine, sampling_settings
from rlgaf_ray.engines.seeds import EVALUATION, rollout_seed
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.text import decode
from rlgaf_ray.models.generator import load_generator
from rlgaf_ray.report.figures import QualityPoint, save
from rlgaf_ray.report.places import Opened, opened
from rlgaf_ray.report.quality import FILES, Comparison, Evaluated, models_table, quality_of, temperatures_table
from rlgaf_ray.run.checks import check_before_start
from rlgaf_ray.run.preparation import Data, cache_folder, prepare_data, prepare_evaluator, python_task
from rlgaf_ray.run.provenance import Provenance, check_evaluated, of_evaluated, of_warmups, recorded
from rlgaf_ray.training.batching import Batching
from rlgaf_ray.training.policy import mean_nll
from rlgaf_ray.training.sft import fine_tune
from rlgaf_ray.training.warmup import WarmupProgress, Worker
from rlgaf_ray.types import MIN_TEXTS, Demonstration, EvaluationPart, Prompt
from rlgaf_ray.weights.state import to_arrays

SFT = "SFT"
TEST_READINGS = "test_readings.jsonl"


def evaluate(
    folders: Sequence[str | Path],
    *,
    temperatures: Sequence[float] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3),
    sft_steps: Sequence[int] = (200, 400),
    sft_learning_rate: float = 5e-4,
    num_prompts: int | None = None,
    out: str | None = None,
    part: EvaluationPart = "validation",
    task: TaskSource | None = None,
    console: Console | None = None,
) -> Comparison:
    """Evaluate the runs' generators, the SFT model and SFT on the demonstrations (for each of ``sft_steps``).

    Writes ``quality_diversity.json``, ``.png`` and ``.svg`` into ``out`` (default: the first run's folder). Prints a
    table of the models and real text and one over temperatures to ``console``; by default nothing is printed. Every
    reading of the test split is first logged in each run's ``test_readings.jsonl``. ``task`` is the task passed
    to ``train``, if any. Raises ``UserError`` for too few prompts, a folder without a finished run, and runs of
    different warm-ups.
    """
    if num_prompts is not None and num_prompts < MIN_TEXTS:
        raise UserError(f"num_prompts={num_prompts} is too few for self-BLEU: give {MIN_TEXTS} or more")
    if not 0 < sft_learning_rate < math.inf:
        raise UserError(f"sft_learning_rate={sft_learning_rate:g} is not a positive number: give one such as 5e-4")
    absolute = [
        each if isinstance(each, str) and uri.is_uri(each) else os.path.abspath(os.path.expanduser(each))
        for each in folders
    ]
    console = console or Console(quiet=True)
    with opened(absolute, out, subfolders=("generator",)) as places:
        return _evaluate(places, temperatures, sft_steps, sft_learning_rate, num_prompts, part, console, task)


def note_test_reading(run: Place) -> None:
    """Log the time and the version of an evaluation on the test split in the run's folder."""
    file = run / TEST_READINGS
    earlier = file.read_text(encoding="utf-8") if file.is_file() else ""
    line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "rlgaf_ray": __version__})
    with writing(file):
        file.write_text(f"{earlier}{line}\n", encoding="utf-8")


def _evaluate(
    places: Opened,
    temperatures: Sequence[float],
    sft_steps: Sequence[int],
    sft_learning_rate: float,
    num_prompts: int | None,
    part: EvaluationPart,
    console: Console,
    task: TaskSource | None,
) -> Comparison:
    runs = places.folders
    configs = [_config(run) for run in runs]
    engine = configs[0].rollout
    if (lowest := engine.traits.lowest_temperature) > min(temperatures, default=1.0):
        raise UserError(
            f"temperature {min(temperatures):g} is sampled at {lowest:g} by rollout.engine={engine.engine} of "
            f"{runs[0]}: give {lowest:g} or more"
        )
    if len({run.name for run in runs}) < len(runs):
        raise UserError(f"two runs have the same name ({', '.join(run.name for run in runs)}): rename a folder")
    for run, config in zip(runs, configs, strict=True):
        if config.task.model_copy(update={"date": configs[0].task.date}) != configs[0].task:
            raise UserError(f"{run} and {runs[0]} have different tasks: evaluate them separately")
    for risk in dict.fromkeys(risk for config in configs for risk in (*config.model.risks, *config.task.risks)):
        console.print(risk)
    for config in configs:
        check_before_start(config)
    cache = cache_folder(configs[0])
    data = prepare_data(configs[0], cache, python_task(configs[0], task))
    everything = len(data.task.evaluation("test")) if part == "test" else configs[0].evaluation.num_prompts
    real = evaluation_set(data.task, num_prompts or everything, part)
    for sentence in provenance_notes(runs, [of_evaluated(config, data.task) for config in configs]):
        console.print(sentence, soft_wrap=True, highlight=False)
    target = places.target
    target.mkdir(parents=True, exist_ok=True)
    if part == "test":
        for place in places.places:
            note_test_reading(place)
    with ray_session(configs[0]):
        comparison = _sweep(configs, runs, data, real, temperatures, sft_steps, sft_learning_rate, console, part)
    comparison.save(target)
    console.print(models_table(comparison.rows, part))
    console.print(temperatures_table(comparison.rows, part))
    for sentence in comparison.advantages():
        console.print(sentence, soft_wrap=True, highlight=False)
    figure = comparison.figure()
    path = target / FILES[part]
    for suffix in (".png", ".svg"):
        save(figure, path.with_suffix(suffix))
    console.print(f"results are in {places.shown(path)}, .png and .svg", soft_wrap=True, highlight=False)
    return comparison


def provenance_notes(runs: Sequence[Path], now: Sequence[Provenance]) -> list[str]:
    """Run ``check_evaluated`` on each run and check that all runs were trained on the same data."""
    data = [(recorded(run) or {}).get("data") for run in runs]
    for run, found in zip(runs, data, strict=True):
        if None not in (found, data[0]) and found != data[0]:
            raise UserError(f"{run} and {runs[0]} were trained on different data: evaluate them separately")
    return [note for run, each in zip(runs, now, strict=True) for note in check_evaluated(run, each)]


def _config(run: Path) -> Config:
    if not (run / "config.yaml").is_file() or not (run / "generator" / "config.json").is_file():
        raise UserError(
            f"{run} is not a finished run (it has no config.yaml or no generator/): give a folder such as runs/NAME"
        )
    return load_config(run / "config.yaml")


def _sweep(
    configs: Sequence[Config],
    runs: Sequence[Path],
    data: Data,
    real: Sequence[Demonstration],
    temperatures: Sequence[float],
    sft_steps: Sequence[int],
    sft_learning_rate: float,
    console: Console,
    part: EvaluationPart,
) -> Comparison:
    config = configs[0]
    cache = cache_folder(config)
    warmups = [prepare_warmups(each, data.task, data.tokenizer, cache, lambda name, progress: None) for each in configs]
    for run, each in zip(runs, warmups, strict=True):
        if each.generator != warmups[0].generator:
            raise UserError(f"{run} and {runs[0]} started from different warm-ups: evaluate them separately")
    for sentence in provenance_notes(runs, [of_warmups(each) for each in warmups]):
        console.print(sentence, soft_wrap=True, highlight=False)
    evaluator = prepare_evaluator(config, data, cache, len(real), part, report=console.print)
    prompts = [Prompt(prompt_id=row, token_ids=item.prompt_ids) for row, item in enumerate(real)]
    seeds = [rollout_seed(config.run.seed, EVALUATION, index) for index in range(len(prompts))]
    pad = data.tokenizer.pad_token_id
    batching = Batching(config.learner.micro_batch_size)
    reference = load_generator(warmups[0].generator, trust_remote_code=config.model.trust_remote_code)
    engine = build_engine(warmups[0].generator, config, max_tokens=data.task.max_tokens)

    models: list[tuple[str, PreTrainedModel]] = [(SFT, reference)]
    for steps in sft_steps:
        model = load_generator(warmups[0].generator, trust_remote_code=config.model.trust_remote_code)
        settings = SftWarmup(steps=steps, learning_rate=sft_learning_rate)
        fine_tune(
            model,
            data.task.demonstrations,
            settings,
            precision=config.learner.precision,
            seed=0,
            checkpoint_every=steps,
            worker=_shown(console, steps),
        )
        models.append((f"SFT on demonstrations, {steps} steps", model))
    models += _trained(runs, configs)

    first = config.rollout.temperature  # the run's own temperature comes first: the tables compare the models there
    perplexity_real = math.exp(mean_nll(reference, real, pad_token_id=pad, batching=batching))  # at 1, as of samples
    rows = []
    jobs = [(name, model, t) for name, model in models for t in dict.fromkeys([first, *temperatures])]
    with Progress(console=console) as progress:
        bar = progress.add_task("evaluating", total=len(jobs))
        for version, (name, model, temperature) in enumerate(jobs):
            progress.update(bar, description=f"{name} at temperature {temperature:g}")
            engine.update_weights(to_arrays(model.state_dict(), version))
            sampling = replace(sampling_settings(config, samples_per_prompt=1), temperature=temperature)
            rollouts = engine.generate(prompts, sampling, seeds=seeds)
            metrics = evaluator(
                [rollout.response_ids for rollout in rollouts],
                decode([data.task.evaluated_ids(rollout) for rollout in rollouts], data.tokenizer),
                sample_nll=mean_nll(reference, rollouts, pad_token_id=pad, batching=batching),
                real_nll=mean_nll(model, real, pad_token_id=pad, batching=batching, temperature=temperature),
            )
            metrics["eval/perplexity_real"] = perplexity_real
            rows.append(Evaluated(name, temperature, metrics))
            progress.advance(bar)
    engine.close()
    adversarial = [run.name for run in runs]
    quality_real = f"{quality_of(rows[0].metrics)}_real"
    if quality_real not in rows[0].metrics:
        return Comparison(rows, adversarial, part=part)
    real_point = QualityPoint(
        judged_share=rows[0].metrics[quality_real],
        perplexity=perplexity_real,
        distinct_2=rows[0].metrics["eval/distinct_2_real"],
        self_bleu=rows[0].metrics["eval/self_bleu_real"],
    )
    return Comparison(rows, adversarial, real_point, part)


def _trained(runs: Sequence[Path], configs: Sequence[Config]) -> list[tuple[str, PreTrainedModel]]:
    """Load each run's generator under the run's own ``model.trust_remote_code``."""
    return [
        (run.name, load_generator(run / "generator", trust_remote_code=config.model.trust_remote_code))
        for run, config in zip(runs, configs, strict=True)
    ]


def _shown(console: Console, steps: int) -> Worker:
    def report(progress: WarmupProgress) -> None:
        if progress.step % 100 == 0 or progress.step == steps:
            console.print(f"SFT on demonstrations {progress.step}/{steps}: loss {progress.loss:.3f}", highlight=False)

    return Worker(report=report)
