"""Train one method on one replicate and measure it with every decoding on both parts, in one process."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rlgaf_ray.actors.warmup import prepare_warmups
from rlgaf_ray.compare.budget import PROMPTS_AT_ONCE, num_rollouts
from rlgaf_ray.compare.configs import method_config, method_of
from rlgaf_ray.compare.decoding import Decoding, decodings
from rlgaf_ray.compare.guidance import GuidedEngine, Labels
from rlgaf_ray.compare.likelihood import Likelihood
from rlgaf_ray.compare.methods import Answering
from rlgaf_ray.compare.posterior import Posterior
from rlgaf_ray.compare.shared import warm_up
from rlgaf_ray.config import Config, with_values
from rlgaf_ray.config.compare import MethodName
from rlgaf_ray.data.cache import write_atomically
from rlgaf_ray.data.task import Task
from rlgaf_ray.engines.base import RolloutEngine
from rlgaf_ray.engines.build import sampling_settings
from rlgaf_ray.engines.seeds import EVALUATION, rollout_seed
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.embeddings import load_encode
from rlgaf_ray.evaluation.evaluate import word_distances
from rlgaf_ray.evaluation.measures import MeasureInputs, build_measure
from rlgaf_ray.evaluation.text import decode, distinct_n
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.reward_functions import RewardFunction, with_rewards
from rlgaf_ray.loop.roles import Roles
from rlgaf_ray.metrics import metric
from rlgaf_ray.run.checks import check_before_start
from rlgaf_ray.run.preparation import Data, Prepared, cache_folder, prepare_data, prepare_evaluator
from rlgaf_ray.run.session import local_roles, open_loop
from rlgaf_ray.training.precision import processor_type
from rlgaf_ray.types import EVALUATION_PARTS, EvaluationPart, Metrics, PolicyNetwork, Prompt, Rollout


@dataclass(frozen=True)
class Measured:
    """Measurement of the answers with one decoding."""

    temperature: float
    quality: float  # the task's own measure; higher is better
    each: list[float] | None  # mean quality per prompt; None if the measure does not score single answers
    entropy: float | None  # nats per answer, of the sampling distribution; None if answers are selected by score
    distinct_2: float
    metrics: Metrics
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.temperature, self.top_p, self.min_p)


@dataclass(frozen=True)
class Trial:
    method: MethodName
    replicate: int
    parts: dict[EvaluationPart, list[Measured]]
    rollouts: int  # sampled for training
    seconds: dict[str, float]  # per stage; "training" includes the discriminator's warm-up, also where it was shared
    candidates: int  # sampled per answer
    sft_steps: int | Literal["auto"]  # of the model that was measured or trained further
    processor: str = "unknown"
    guidance: float | None = None  # weight of the guidance by label tokens

    def save(self, path: Path) -> None:
        def write(temporary: Path) -> None:
            temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")

        write_atomically(path, write)

    @classmethod
    def load(cls, path: Path) -> Trial:
        tree = json.loads(path.read_text(encoding="utf-8"))
        parts = {part: [Measured(**each) for each in found] for part, found in tree.pop("parts").items()}
        return cls(parts=parts, **tree)


def run_trial(config: Config, name: MethodName, replicate: int, folder: Path) -> Trial:
    """Train and measure one method with all roles in this process. ``folder``: ``run.root`` of the training run.

    With ``compare.sft_steps``, supervised methods are trained with each step count, and ``label_token`` is measured
    with each weight of ``compare.guidance``; returns the trial with the best validation quality.
    """
    torch.set_num_threads(1)
    config = method_config(config, name, replicate)
    run = config.run.model_copy(update={"root": str(folder), "name": f"{name}-{replicate}"})
    config = config.model_copy(update={"run": run})
    check_before_start(config)
    data = prepare_data(config, cache_folder(config))
    configs = [with_values(config, keys) for keys in method_of(config, name).options(config)]
    if len(configs) == 1:
        return _run(configs[0], data, name, replicate, EVALUATION_PARTS)
    tried = [_run(each, data, name, replicate, ["validation"]) for each in configs]
    qualities = [max(each.quality for each in trial.parts["validation"]) for trial in tried]
    row = int(np.argmax(qualities))
    best, tested = tried[row], _run(configs[row], data, name, replicate, ["test"])  # its SFT model is cached
    seconds = {stage: sum(trial.seconds[stage] for trial in [*tried, tested]) for stage in best.seconds}
    return replace(best, parts=best.parts | tested.parts, seconds=seconds)


def _run(config: Config, data: Data, name: MethodName, replicate: int, measured: Sequence[EvaluationPart]) -> Trial:
    """Train one method and measure it on these parts. ``config``: the method's own."""
    method, started = method_of(config, name), time.perf_counter()
    cache = cache_folder(config)
    rewards: Mapping[str, RewardFunction] = {}
    if method.scorer == "verdict":
        config, rewards = with_rewards(config, {verdict_of(data.task): 1.0})
    labels = Labels(data.tokenizer) if method.answering.guided else None
    warmups = prepare_warmups(
        config,
        data.task,
        data.tokenizer,
        cache,
        lambda stage, progress: None,
        with_ray=False,
        sft_rows=None if labels is None else labels.rows(data.task),
    )
    prepared = Prepared(config, data, warmups, rewards=rewards)
    if method.scorer == "posterior":

        def posterior(folder: Path, config: Config, **options: Any) -> Posterior:
            return Posterior(warmups.generator, data.task, config, **options)

        prepared = replace(prepared, discriminator=posterior)
    seconds = {"warm-ups": time.perf_counter() - started}
    network: PolicyNetwork = "policy"
    version, saved = 0, 0.0
    with closing(local_roles(prepared)) as roles:
        if method.trains != "nothing":
            checkpoints = Checkpoints(config.run.folder / "checkpoints", keep=1)
            quick = config.evaluation.model_copy(update={"embeddings": False})
            evaluator = prepare_evaluator(config.model_copy(update={"evaluation": quick}), data, cache)
            with open_loop(prepared, roles, checkpoints, evaluator=evaluator) as loop:
                if config.discriminator_warmup_updates:
                    saved = warm_up(loop, roles, config, warmups, Path(config.run.root))
                if method.trains == "generator":
                    version = loop.run().iteration
                    network = "average" if config.generator.average_decay > 0 else "policy"
        roles.push_weights(version, network=network)()
        trained = time.perf_counter()
        seconds["training"] = trained - started - seconds["warm-ups"] + saved
        engine = base = guidance = None
        if labels is not None:
            guidance = config.compare.guidance[0]
            engine = GuidedEngine(warmups.generator, labels, guidance, config)
        if config.reward.base_logprob > 0 and method.answering.candidates > 1:
            base = Likelihood(warmups.base, config, pad_token_id=data.tokenizer.pad_token_id)
        measuring = Measuring(config, data, roles, method.answering, engine=engine, base=base)
        parts = {part: [measuring(part, each) for each in decodings(config.compare)] for part in measured}
    seconds["measuring"] = time.perf_counter() - trained
    steps = config.warmup.sft.steps
    return Trial(
        name,
        replicate,
        parts,
        num_rollouts(config, method),
        seconds,
        method.answering.candidates,
        steps,
        processor_type(),
        guidance,
    )


def verdict_of(task: Task) -> RewardFunction:
    """Return the task's verdict as a reward function. Raises ``UserError`` if it has none."""
    verdict = getattr(task, "verdict", None)
    if verdict is None:
        raise UserError(
            f"compare.methods: verdict needs a task with an exact verdict, but {type(task).__name__} has "
            "none: remove verdict from compare.methods"
        )
    return verdict


class PartMeasure:
    """Measures one answer to every prompt of a part.

    It is the task's measure. If ``evaluation.best_metric`` needs it, the two-sample test against real text is added.
    """

    def __init__(self, config: Config, data: Data, part: EvaluationPart) -> None:
        cache, task = cache_folder(config), data.task
        self.quality = config.best_metric
        self.items = task.evaluation(part)[: config.compare.num_prompts]
        self.real_texts = decode([task.evaluated_ids(item) for item in self.items], data.tokenizer)
        encode = load_encode(cache) if config.evaluation.embeddings else None
        self.own = build_measure(MeasureInputs(task, part, self.real_texts, encode, cache))

    def __call__(self, texts: Sequence[str]) -> Metrics:
        """Return the metrics. Raises ``UserError`` if the quality is not among them, or lower for better answers."""
        metrics = self.own(texts)
        if self.quality not in metrics:
            with_distance = metrics | word_distances(self.real_texts, texts)
            metrics = with_distance | self.own.derived(with_distance)
        suitable = [name for name in metrics if metric(name).better != "lower"]
        if self.quality not in suitable:
            raise UserError(
                f"evaluation.best_metric={self.quality} is lower for better answers or not a metric of a set of "
                f"answers, but rlgaf compare selects by it: set it to one of {', '.join(suitable)}"
            )
        return metrics


class Measuring:
    """Measures ``compare.samples`` answers to every prompt of a part, with the same seeds for every method.

    ``engine``: by default that of ``roles``. ``base``: adds the base model's log-likelihood, times
    ``reward.base_logprob``, to the candidates' scores.
    """

    def __init__(
        self,
        config: Config,
        data: Data,
        roles: Roles,
        answering: Answering,
        *,
        engine: RolloutEngine | None = None,
        base: Likelihood | None = None,
    ) -> None:
        self.config, self.data, self.roles, self.answering = config, data, roles, answering
        self.engine, self.base = engine, base
        self.measures: dict[EvaluationPart, PartMeasure] = {}

    def __call__(self, part: EvaluationPart, decoding: Decoding) -> Measured:
        task, config = self.data.task, self.config
        if part not in self.measures:
            self.measures[part] = PartMeasure(config, self.data, part)
        measure = self.measures[part]
        prompts = [Prompt(row, item.prompt_ids) for row, item in enumerate(measure.items)]
        answers = self.answers(prompts, decoding)  # answers to one prompt are adjacent
        count = config.compare.samples
        texts = decode([task.evaluated_ids(answer) for answer in answers], self.data.tokenizer)
        found = [measure(texts[each::count]) for each in range(count)]
        metrics = {key: float(np.mean([row[key] for row in found])) for key in found[0]}
        singles = [one for row in range(count) if (one := measure.own.each(texts[row::count])) is not None]
        each = np.mean(singles, axis=0) if singles else None  # of the task's own quality, which may not be the config's
        logprobs = np.array([answer.behaviour_logprobs.sum(dtype=np.float64) for answer in answers])
        sampled = self.answering.candidates == 1
        metrics |= measure.own.repeated(
            [texts[row : row + count] for row in range(0, len(texts), count)],
            logprobs.reshape(-1, count) if sampled else None,
        )
        return Measured(
            decoding.temperature,
            quality=metrics[measure.quality],
            each=each.tolist() if each is not None and np.isclose(each.mean(), metrics[measure.quality]) else None,
            entropy=float(-logprobs.mean()) if sampled else None,
            distinct_2=distinct_n([answer.response_ids for answer in answers], 2),
            metrics=metrics,
            top_p=decoding.top_p,
            min_p=decoding.min_p,
        )

    def answers(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Rollout]:
        """Sample ``compare.samples`` adjacent answers per prompt, each selected among candidates if configured."""
        candidates, seed = self.answering.candidates, self.config.run.seed
        per_prompt = self.config.compare.samples * candidates
        sampling = replace(sampling_settings(self.config, samples_per_prompt=per_prompt), **decoding.changes)
        answers: list[Rollout] = []
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            batch = prompts[start : start + PROMPTS_AT_ONCE]
            first = start * per_prompt
            seeds = [rollout_seed(seed, EVALUATION, first + row) for row in range(len(batch) * per_prompt)]
            if self.engine is None:
                rollouts = self.roles.generate(batch, sampling, seeds)
            else:
                rollouts = self.engine.generate(batch, sampling, seeds=seeds)
            answers += rollouts if candidates == 1 else self.select(rollouts, start)
        return answers

    def select(self, rollouts: Sequence[Rollout], start: int) -> list[Rollout]:
        """Keep one of each group of adjacent candidates. ``start`` seeds the noise."""
        candidates = self.answering.candidates
        keys = [(rollout.prompt_id, rollout.response_ids.tobytes()) for rollout in rollouts]
        distinct = dict(zip(keys, rollouts, strict=True))
        values = np.array([each.score for each in self.roles.score([*distinct.values()])])
        if self.base is not None:
            values = values + self.config.reward.base_logprob * self.base([*distinct.values()])
        score_of = dict(zip(distinct, values.tolist(), strict=True))
        scores = np.array([score_of[key] for key in keys]).reshape(-1, candidates)
        if self.answering.by == "weight":  # Gumbel-max trick: samples in proportion to exp(score)
            scores = scores + np.random.default_rng([self.config.run.seed, start]).gumbel(size=scores.shape)
        selected = scores.argmax(1) + np.arange(len(scores)) * candidates
        return [rollouts[row] for row in selected]
