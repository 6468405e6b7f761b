"""Evaluation of generator and discriminator on the validation split, with fixed prompts and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.task import Task, evaluation_set
from rlgaf_ray.engines.build import sampling_settings
from rlgaf_ray.engines.seeds import EVALUATION
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.discrimination import discrimination
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.evaluation.text import decode, full_texts
from rlgaf_ray.loop.roles import Roles
from rlgaf_ray.loop.rollouts import rollout_seeds
from rlgaf_ray.metrics import metric, suggestion
from rlgaf_ray.tracking.base import Trackers
from rlgaf_ray.types import Demonstration, Metrics, PolicyNetwork, Prompt, Rollout

TRACKED_ROLLOUTS = 16  # per evaluation, logged as a table


class Evaluated(NamedTuple):
    """An evaluation of the trained generator."""

    iteration: int
    metrics: Metrics
    samples: list[str]


NOT_EVALUATED = Evaluated(0, {}, [])


class Evaluation:
    """Evaluates the policy, or its moving average (``generator.average_decay``), pushed to the engines for that."""

    def __init__(
        self,
        config: Config,
        roles: Roles,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        evaluator: Evaluator,
        trackers: Trackers,
    ) -> None:
        self.config = config
        self.roles = roles
        self.task = task
        self.tokenizer = tokenizer
        self.evaluator = evaluator
        self.trackers = trackers
        self.network: PolicyNetwork = "average" if config.generator.average_decay > 0 else "policy"

    def full(self, iteration: int) -> tuple[Metrics, list[str]]:
        """Compute all metrics and return ``evaluation.num_samples`` texts; ``iteration``: version of the weights."""
        settings = self.config.evaluation
        real = evaluation_set(self.task, settings.num_prompts)
        rollouts = self._sample(real, iteration)
        metrics, scores = self._discrimination(rollouts, real)
        self._log(rollouts[:TRACKED_ROLLOUTS], scores[:TRACKED_ROLLOUTS], iteration)
        metrics |= self.evaluator(
            [rollout.response_ids for rollout in rollouts],
            self._texts(rollouts),
            sample_nll=self.roles.mean_nll(rollouts, "reference"),
            real_nll=self.roles.mean_nll(real, self.network),
        )
        return metrics, full_texts(rollouts[: settings.num_samples], self.tokenizer)

    def quick(self, iteration: int) -> Metrics:
        """Compute the cheap metrics on the first ``evaluation.quick_prompts`` prompts."""
        settings = self.config.evaluation
        real = evaluation_set(self.task, min(settings.quick_prompts, settings.num_prompts))
        rollouts = self._sample(real, iteration)
        metrics, _ = self._discrimination(rollouts, real)
        quick = {name.replace("discriminator/", "quick/"): value for name, value in metrics.items()}
        return quick | self.evaluator.quick(self._texts(rollouts))

    def _sample(self, real: Sequence[Demonstration], iteration: int) -> list[Rollout]:
        """Sample one response per prompt; afterwards the engines hold the policy again."""
        if self.network != "policy":
            self.roles.push_weights(iteration, network=self.network)()
        prompts = [Prompt(prompt_id=row, token_ids=item.prompt_ids) for row, item in enumerate(real)]
        sampling = sampling_settings(self.config, samples_per_prompt=1)
        rollouts = self.roles.generate(prompts, sampling, rollout_seeds(self.config, EVALUATION, len(prompts)))
        if self.network != "policy":
            self.roles.push_weights(iteration)()
        return rollouts

    def _discrimination(
        self, rollouts: Sequence[Rollout], real: Sequence[Demonstration]
    ) -> tuple[Metrics, list[float]]:
        """Measure how well the discriminator separates rollouts from unseen real responses; also return the scores."""
        scored, real_logits = self.roles.start_score(rollouts, real)()
        scores = [item.score for item in scored]
        return discrimination(np.array(real_logits), np.array(scores)), scores

    def _texts(self, rollouts: Sequence[Rollout]) -> list[str]:
        return decode([self.task.evaluated_ids(rollout) for rollout in rollouts], self.tokenizer)

    def _log(self, rollouts: Sequence[Rollout], scores: Sequence[float], iteration: int) -> None:
        """Log a table of rollouts, with the same prompts at every evaluation."""
        prompts = decode([rollout.prompt_ids for rollout in rollouts], self.tokenizer)
        responses = decode([rollout.response_ids for rollout in rollouts], self.tokenizer)
        rows = [
            {"prompt": prompt, "response": response, "score": float(score), "finish_reason": rollout.finish_reason}
            for prompt, response, score, rollout in zip(prompts, responses, scores, rollouts, strict=True)
        ]
        self.trackers.log_table(iteration, "rollouts", rows)


class BestMetric:
    """Tracks the best value of the metric that marks the best checkpoint (``evaluation.best_metric``)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: float | None = None  # multiplied by the metric's sign, so that higher is better

    def check(self, metrics: Metrics) -> None:
        """Raise ``UserError`` before training if the evaluation does not measure this metric."""
        if self.name not in metrics:
            known = [each for each in metrics if each.startswith("eval/")]
            raise UserError(f"evaluation.best_metric={self.name} is not measured: {suggestion(self.name, known)}")

    def improves(self, metrics: Metrics) -> bool:
        """Update the best value; return whether this evaluation improved it."""
        value = metric(self.name).sign * metrics[self.name]
        if self.value is not None and value <= self.value:
            return False
        self.value = value
        return True
