"""One row of the evidence on adversarial feedback: a config of ``rows.yaml`` on one replicate.

    python experiments/adversary/run.py recommended 0 --part test

A replicate has its own random 80 % of the demonstrations, its own SFT, discriminator and seed. The run is made in this
process on one thread, so that two can run side by side on two cores, and ends with four responses to each prompt of the
part. One line is appended to ``results/PART/ROW.jsonl``; a row that stands there already is not repeated. The verdict
of each judge on each response goes to ``results/PART/verdicts/ROW-REPLICATE.npz``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch
from rows import HERE, ROWS, lines_of

from rlgaf_ray.actors.warmup import Warmups, prepare_warmups
from rlgaf_ray.config import Config, load_config
from rlgaf_ray.data.cache import content_hash
from rlgaf_ray.data.task import evaluation_set
from rlgaf_ray.engines.build import sampling_settings
from rlgaf_ray.engines.seeds import EVALUATION, rollout_seed
from rlgaf_ray.evaluation.discrimination import discrimination
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.evaluation.sentiment import SentimentMeasure
from rlgaf_ray.evaluation.text import decode
from rlgaf_ray.loop.adversarial import AdversarialLoop
from rlgaf_ray.loop.callback import Callback
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.local import LocalRoles
from rlgaf_ray.run.preparation import Data, Prepared, cache_folder, prepare_data, prepare_evaluator
from rlgaf_ray.run.session import local_roles, open_loop
from rlgaf_ray.training.precision import processor_type
from rlgaf_ray.training.warmup import WarmupProgress
from rlgaf_ray.types import Metrics, Prompt

RESPONSES = 4  # a prompt; one, at the temperatures of a sweep other than the run's own
SWEEP = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
KEPT = ("eval/", "discriminator/", "quick/", "generator/kl", "generator/entropy", "reward/", "guard/", "iteration")


class Watched(Callback):
    """Prints a line an evaluation, and what the guard says."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def on_iteration(self, iteration: int, metrics: Metrics) -> None:
        shown = {name: metrics[name] for name in ("eval/closeness", "quick/held_out_auc") if name in metrics}
        if shown:
            print(iteration, " ".join(f"{name} {value:.3f}" for name, value in shown.items()), flush=True)

    def on_warmup(self, stage: str, progress: WarmupProgress) -> None:
        if progress.step % 100 == 0:
            print(f"{stage} {progress.step}/{progress.num_steps}: {progress.loss:.3f}", flush=True)

    def on_discriminator_warmup(self, update: int, total: int, metrics: Metrics) -> None:
        if update % 25 == 0:
            print(f"discriminator's warm-up {update}/{total}: {metrics['discriminator/loss']:.3f}", flush=True)

    def on_message(self, text: str) -> None:
        self.messages.append(text)
        print(text, flush=True)


class Loop(AdversarialLoop):
    """Keeps the discriminator that was warmed up on rollouts, for rows that differ in later iterations alone."""

    def __init__(self, kept: Path, *arguments: Any) -> None:
        self.kept = kept
        super().__init__(*arguments)

    def warm_up_discriminator(self) -> None:
        roles = self.roles
        assert isinstance(roles, LocalRoles)
        state = self.kept / "streams.json"
        if not state.is_file():
            super().warm_up_discriminator()
            roles.discriminator.save(self.kept / "discriminator")
            state.write_text(json.dumps(self.train_step.draws.state_dict()))
            return
        self.train_step.discriminator_version = self.config.discriminator_warmup_updates
        roles.discriminator.load(self.kept / "discriminator", version=self.train_step.discriminator_version)
        self.train_step.draws.load_state_dict(json.loads(state.read_text()))


def warmed_up(config: Config, warmups: Warmups, cache: Path) -> Path:
    """The folder of what the discriminator's warm-up on rollouts depends on."""
    settings = config.discriminator.model_copy(update={"updates_per_generator_update": 1.0})
    contrast = "" if warmups.contrast is None else warmups.contrast.name
    sections = [settings, config.warmup.discriminator, config.task, config.rollout, config.learner]
    texts = [section.model_dump_json() for section in sections]
    key = content_hash([*texts, warmups.generator.name, warmups.discriminator.name, contrast, str(config.run.seed)])
    return cache / "warmups" / f"rollouts-{key[:16]}"


def row_config(row: Mapping[str, Any], replicate: int, extra: list[str]) -> Config:
    """The row's config on this replicate: ``row`` maps dotted keys to values."""
    keys = {
        "run.name": f"{row['name']}-{replicate}",
        "run.root": "runs/adversary",
        "run.seed": replicate,
        "task.draw_seed": replicate,
        "task.draw_share": 0.8,
        "rollout.engine": "transformers",
        "cluster.threads": 1,
        "tracking.to": [],
        "tracking.rollout_share": 0.0,
        "checkpoint.every": 10_000,
        "checkpoint.keep": 1,
        **row["keys"],
    }
    return load_config(None, [f"{key}={json.dumps(value)}" for key, value in keys.items()] + extra)


class Measured:
    """Samples one generator on a part, ``RESPONSES`` to each prompt, and measures them."""

    def __init__(self, config: Config, data: Data, roles: LocalRoles, part: str, *, scored: bool) -> None:
        """``scored``: there is a trained discriminator, whose scores are measured, too."""
        self.config, self.data, self.roles, self.scored = config, data, roles, scored
        self.real_nll: dict[str, float] = {}
        self.real = evaluation_set(data.task, config.evaluation.num_prompts, part)  # type: ignore[arg-type]
        self.evaluator: Evaluator = prepare_evaluator(
            config,
            data,
            cache_folder(config),
            len(self.real),
            part,  # type: ignore[arg-type]
        )

    def __call__(
        self, network: str, temperature: float, num_responses: int = RESPONSES
    ) -> tuple[Metrics, dict[str, np.ndarray]]:
        """Means of the measures over the responses of a prompt, and each judge's verdicts bool [responses, prompts]."""
        roles, config = self.roles, self.config
        roles.engine.update_weights(roles.learner.weights(-1, network=network))  # type: ignore[arg-type]
        prompts = [Prompt(prompt_id=row, token_ids=item.prompt_ids) for row, item in enumerate(self.real)]
        sampling = replace(sampling_settings(config, samples_per_prompt=num_responses), temperature=temperature)
        seeds = [rollout_seed(config.run.seed, EVALUATION, row) for row in range(num_responses * len(prompts))]
        rollouts = []
        for start in range(0, len(prompts), 64):  # small batches keep the cache of keys and values small
            rows = seeds[start * num_responses : (start + 64) * num_responses]
            rollouts += roles.engine.generate(prompts[start : start + 64], sampling, seeds=rows)
        if network not in self.real_nll:
            self.real_nll[network] = roles.learner.mean_nll(self.real, model=network)  # type: ignore[arg-type]
        collected: dict[str, list[float]] = defaultdict(list)
        verdicts: dict[str, list[np.ndarray]] = defaultdict(list)
        for each in range(num_responses):
            shown = rollouts[each::num_responses]
            texts = decode([self.data.task.evaluated_ids(rollout) for rollout in shown], self.data.tokenizer)
            metrics = self.evaluator(
                [rollout.response_ids for rollout in shown],
                texts,
                sample_nll=roles.learner.mean_nll(shown, model="reference"),
                real_nll=self.real_nll[network],
            )
            if self.scored:
                scored, real_logits = roles.start_score(shown, self.real)()
                metrics |= discrimination(np.array(real_logits), np.array([item.score for item in scored]))
            for name, value in metrics.items():
                collected[name].append(value)
            measure = self.evaluator.measure
            assert isinstance(measure, SentimentMeasure)
            for judge, found in measure.verdicts(texts).items():
                verdicts[judge].append(found)
        means = {name: float(np.mean(values)) for name, values in collected.items()}
        return means, {judge: np.array(found) for judge, found in verdicts.items()}


def make(row: Mapping[str, Any], replicate: int, part: str, extra: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row's line of results, and its verdicts."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    config = row_config(row, replicate, extra)
    cache = cache_folder(config)
    data = prepare_data(config, cache)
    watched = Watched()
    warmups = prepare_warmups(config, data.task, data.tokenizer, cache, watched.on_warmup, with_ray=False)
    prepared = Prepared(config, data, warmups)
    roles = local_roles(prepared)
    warmed = time.perf_counter() - started
    history: list[dict[str, Any]] = []
    trains = row.get("train", True)
    if trains:
        history = trained(prepared, roles, watched, warmed_up(config, warmups, cache))
    ran = time.perf_counter() - started - warmed
    measured = Measured(config, data, roles, part, scored=trains and config.reward.kind != "zero")
    network = "average" if config.generator.average_decay > 0 else "policy"
    if not trains:
        network = "reference"
    own = config.rollout.temperature
    if trains:
        measured("reference", own, 1)  # the SFT model is what all are compared with: the first that is measured
    final: dict[str, Metrics] = {}
    verdicts: dict[str, np.ndarray] = {}
    for temperature in (own, *(other for other in SWEEP if other != own)) if row.get("sweep") else (own,):
        final[str(temperature)], found = measured(network, temperature, RESPONSES if temperature == own else 1)
        verdicts |= {f"{judge}@{temperature}": np.packbits(each, axis=1) for judge, each in found.items()}
    line = {
        "row": row["name"],
        "replicate": replicate,
        "part": part,
        "keys": dict(row["keys"]) | {"extra": extra} if extra else dict(row["keys"]),
        "commit": _commit(),
        "processor": processor_type(),
        "torch": torch.__version__,
        "sft_steps": _sft_steps(warmups),
        "seconds": {"warm-ups": warmed, "training": ran, "measuring": time.perf_counter() - started - warmed - ran},
        "final": final,
        "history": history,
        "messages": watched.messages,
    }
    return line, verdicts


def trained(prepared: Prepared, roles: LocalRoles, watched: Watched, kept: Path) -> list[dict[str, Any]]:
    """Run the loop to its end; the rows of its metrics that have an evaluation, and every fifteenth other one."""
    config = prepared.config
    quick = config.evaluation.model_copy(update={"embeddings": False})
    evaluator = prepare_evaluator(config.model_copy(update={"evaluation": quick}), prepared.data, cache_folder(config))
    checkpoints = Checkpoints(config.run.folder / "checkpoints", keep=config.checkpoint.keep)
    build = partial(Loop, kept)
    with open_loop(prepared, roles, checkpoints, [watched], evaluator=evaluator, build_loop=build) as loop:
        loop.run()
        rows = [row for row in loop.trackers.record.rows() if row["iteration"] % 15 == 0 or "eval/closeness" in row]
    return [{name: value for name, value in row.items() if name.startswith(KEPT)} for row in rows]


def _sft_steps(warmups: Warmups) -> int | None:
    file = Path(warmups.generator) / "warmup.json"
    return json.loads(file.read_text())["steps"] if file.is_file() else None


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=HERE
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row")
    parser.add_argument("replicate", type=int)
    parser.add_argument("extra", nargs="*", help="key=value on top of the row, for trials")
    parser.add_argument("--part", choices=("validation", "test"), default="validation")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--name", help="of the row in the results, with extra keys")
    arguments = parser.parse_args()
    if arguments.row not in ROWS:
        parser.error(f"no row {arguments.row}: choose one of {', '.join(ROWS)}")
    row = {"keys": {}} | (ROWS[arguments.row] or {})
    row["name"] = arguments.name or arguments.row
    folder = arguments.results / arguments.part
    file = folder / f"{row['name']}.jsonl"
    if arguments.replicate in lines_of(folder, row["name"]):
        print(f"{file} has replicate {arguments.replicate} already")
        return
    line, verdicts = make(row, arguments.replicate, arguments.part, arguments.extra)
    (folder / "verdicts").mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "verdicts" / f"{row['name']}-{arguments.replicate}.npz", **verdicts)
    with file.open("a") as out:
        out.write(json.dumps(line) + "\n")
    for temperature, final in line["final"].items():
        print(temperature, {name: round(value, 3) for name, value in final.items() if name.startswith("eval/")})


if __name__ == "__main__":
    main()
