"""Measure the answers of one method with one decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlgaf_ray.compare.budget import PROMPTS_AT_ONCE
from rlgaf_ray.compare.decoding import Decoding
from rlgaf_ray.compare.likelihood import Likelihood
from rlgaf_ray.compare.methods import Answering
from rlgaf_ray.config import Config
from rlgaf_ray.engines.base import RolloutEngine
from rlgaf_ray.engines.build import sampling_settings
from rlgaf_ray.engines.seeds import EVALUATION, rollout_seed
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.embeddings import load_encode
from rlgaf_ray.evaluation.evaluate import word_distances
from rlgaf_ray.evaluation.measures import MeasureInputs, build_measure
from rlgaf_ray.evaluation.text import decode, distinct_n
from rlgaf_ray.loop.roles import Roles
from rlgaf_ray.metrics import metric
from rlgaf_ray.run.preparation import Data, cache_folder
from rlgaf_ray.types import EvaluationPart, Metrics, Prompt, Rollout


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
