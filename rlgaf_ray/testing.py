"""Fakes for testing plug-ins and code that uses a run, without a model, Ray or network.

Each fake subclasses the protocol that it implements, so a type checker verifies it. They work with the real loop:

>>> callback = RecordingCallback(stop_after=3)
>>> loop = AdversarialLoop(config, FakeRoles(), FakeTask(), tokenizer, evaluator, trackers, checkpoints, [callback])
>>> loop.run().iteration
3
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlgaf_ray.config.discriminator import BatchNeeds
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.lengths import Response
from rlgaf_ray.data.storage import Place
from rlgaf_ray.data.task import Task
from rlgaf_ray.loop.callback import Callback
from rlgaf_ray.loop.guard import Verdict
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.loop.roles import Pending, PendingRollouts, PendingScores, Roles
from rlgaf_ray.tracking.base import TrackedRun, Tracker
from rlgaf_ray.training.discriminator import Discriminator, scores_at_the_end
from rlgaf_ray.training.distributed import Group
from rlgaf_ray.training.warmup import WarmupProgress
from rlgaf_ray.types import (
    Demonstration,
    EvaluationPart,
    Metrics,
    PolicyNetwork,
    Prompt,
    Rollout,
    SamplingSettings,
    ScoredRollout,
    TextBlocks,
)


class FakeRoles(Roles):
    """Roles without models; the state in a checkpoint is a few numbers.

    Rollouts have three tokens, derived from their seeds. Every rollout scores -0.5; demonstrations alternate between
    -0.5 and 0.5. The generator's KL is 0.02; from iteration ``onset`` on it grows by 0.4 per update while the KL
    coefficient is below ``enough``.
    """

    def __init__(self, *, onset: int | None = None, enough: float = 0.1, coefficient: float = 0.0) -> None:
        self.onset, self.enough = onset, enough
        self.state: dict[str, Any] = {"kl": 0.02, "coefficient": coefficient, "moments": 0}
        self.learning_rate_factor = 1.0
        self.version = 0
        self.needs = BatchNeeds(contrast=True)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        return [
            Rollout(
                prompts[index // sampling.samples_per_prompt].prompt_id,
                np.array([1], np.int32),
                np.array([seed % 97, seed % 89, seed % 83], np.int32),
                np.zeros(3, np.float32),
                "length",
                self.version,
            )
            for index, seed in enumerate(seeds)
        ]

    def start_generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]
    ) -> PendingRollouts:
        rollouts = self.generate(prompts, sampling, seeds)
        return lambda: (rollouts, 1.0)

    def drop_rollouts(self) -> None:
        pass

    def recovered(self) -> tuple[int, int, int]:
        return 0, 0, 0

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        return [ScoredRollout(rollout, -0.5, 0) for rollout in rollouts]

    def start_score(self, rollouts: Sequence[Rollout], demonstrations: Sequence[Demonstration]) -> PendingScores:
        scored = self.score(rollouts)
        logits = [0.5 if index % 2 else -0.5 for index, _ in enumerate(demonstrations)]
        return lambda: (scored, logits)

    def batch_needs(self) -> BatchNeeds:
        return self.needs

    def update_discriminator(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration]
    ) -> Pending:
        return lambda: {}

    def update_generator(self, scored: Sequence[ScoredRollout], *, iteration: int, text: TextBlocks | None) -> Pending:
        stable = self.state["coefficient"] >= self.enough
        if self.onset is not None and iteration >= self.onset and not stable:
            self.state["kl"] += 0.4
        self.state["moments"] += 1
        metrics = {
            "reward/mean": 0.0,
            "generator/kl": self.state["kl"],
            "generator/kl_coefficient": self.state["coefficient"],
            "generator/moments": float(self.state["moments"]),
        }
        return lambda: metrics

    def push_weights(self, policy_version: int, *, network: PolicyNetwork = "policy") -> Pending:
        self.version = policy_version
        return lambda: {}

    def push_discriminator(self) -> Pending:
        return lambda: {}

    def mean_nll(self, items: Sequence[Demonstration | Rollout], model: PolicyNetwork | Literal["reference"]) -> float:
        return 1.0

    def adjust(
        self, *, learning_rate_factor: float, kl_coefficient: float | None = None, refresh: bool = False
    ) -> None:
        self.learning_rate_factor = learning_rate_factor
        if kl_coefficient is not None:
            self.state["coefficient"] = kl_coefficient
        if refresh:
            self.state["moments"] = 0

    def save(self, folder: Place) -> None:
        (folder / "roles.json").write_text(json.dumps(self.state), encoding="utf-8")

    def rescue(self, folder: Place) -> None:
        self.save(folder)

    def load(self, folder: Place, *, discriminator_version: int) -> None:
        self.state = json.loads((folder / "roles.json").read_text(encoding="utf-8"))

    def close(self) -> None:
        pass


class FakeDiscriminator(Discriminator):
    """Scores a response with minus its number of tokens. Updates only increment the version.

    A subclass can set ``needs`` to receive other rows in ``update``.
    """

    needs: BatchNeeds = BatchNeeds()

    def __init__(self, folder: Path, config: Config, *, pad_token_id: int, device: str, group: Group) -> None:
        self.group = group
        self.version = 0

    def token_scores(self, items: Sequence[Response]) -> tuple[np.ndarray, int]:
        return scores_at_the_end(items, [-len(item.response_ids) for item in items]), self.version

    def update(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration] = ()
    ) -> Metrics:
        self.version += 1
        return {"discriminator/loss": 0.0}

    def weights(self) -> None:
        return None

    def adjust(self, *, learning_rate_factor: float, refresh: bool = False) -> None:
        pass

    def save(self, folder: Place) -> None:
        if isinstance(folder, Path):
            folder.mkdir(exist_ok=True)
        (folder / "updates.txt").write_text(str(self.version), encoding="utf-8")

    def load(self, folder: Place, *, version: int) -> None:
        self.version = version


class FakeTask(Task):
    """A task of numbers: the prompt is the token n, and the response is the token n + 100.

    The evaluation uses the demonstrations.
    """

    checksum: str = "0"
    max_tokens: int = 2

    def __init__(self, prompts: Iterable[int] = range(40), contrast: Iterable[int] = range(7)) -> None:
        self.demonstrations = [_demonstration(prompt) for prompt in prompts]
        self.contrast = [_demonstration(prompt) for prompt in contrast]

    def evaluation(self, part: EvaluationPart) -> list[Demonstration]:
        return self.demonstrations


def _demonstration(number: int) -> Demonstration:
    return Demonstration(np.array([number], np.int32), np.array([100 + number], np.int32))


class RecordingTracker(Tracker):
    """Records everything that the run logs."""

    def __init__(self) -> None:
        self.run: TrackedRun | None = None
        self.metrics: list[tuple[int, Metrics]] = []
        self.tables: list[tuple[int, str, Sequence[Mapping[str, Any]]]] = []

    def start(self, run: TrackedRun) -> None:
        self.run = run

    def log(self, iteration: int, metrics: Metrics) -> None:
        self.metrics.append((iteration, metrics))

    def log_table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.tables.append((iteration, name, rows))


class RecordingCallback(Callback):
    """Records everything that the run reports, and stops it after iteration ``stop_after``."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.iterations: list[int] = []
        self.evaluations: dict[int, Metrics] = {}
        self.verdicts: list[tuple[int, Verdict]] = []
        self.checkpoints: list[tuple[int, Place]] = []
        self.messages: list[str] = []
        self.warmups: set[str] = set()
        self.outcomes: list[Outcome] = []

    def on_iteration(self, iteration: int, metrics: Metrics) -> None:
        self.iterations.append(iteration)
        self.stop_requested = iteration == self.stop_after

    def on_evaluation(self, iteration: int, metrics: Metrics) -> None:
        self.evaluations[iteration] = metrics

    def on_verdict(self, iteration: int, verdict: Verdict) -> None:
        self.verdicts.append((iteration, verdict))

    def on_checkpoint(self, iteration: int, folder: Place) -> None:
        self.checkpoints.append((iteration, folder))

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_warmup(self, stage: str, progress: WarmupProgress) -> None:
        self.warmups.add(stage)

    def on_end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
