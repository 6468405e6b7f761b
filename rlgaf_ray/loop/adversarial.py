"""The adversarial loop (RLGAF, algorithm 1), synchronous: every rollout is sampled from the newest policy.

One iteration, who waits for what::

    rollout ---> score ---> generator update ---> push weights ---> (next rollout)
                      \\--> discriminator update (k times, k >= 0) ---^  next score waits for it

SeqGAN completes prefixes of the rollouts and scores the completions between the score and the generator's update.
Gumbel-softmax pushes the discriminator to the learner after its updates: the next generator update waits for that.
Scores are taken before the discriminator trains on the rollouts, and it is frozen over all epochs of one batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.collate import demonstration_blocks
from rlgaf_ray.data.prompts import PromptStream
from rlgaf_ray.data.task import Task, evaluation_set
from rlgaf_ray.engines.seeds import EVALUATION, rollout_seed
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.evaluation.text import decode, whole_texts
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.guard import Guard, not_finite
from rlgaf_ray.loop.healing import adjust, respond
from rlgaf_ray.loop.held_out import HeldOutAccuracy, contrast_without, set_apart
from rlgaf_ray.loop.monte_carlo import prefixes, whole_responses, with_action_values
from rlgaf_ray.loop.roles import Roles
from rlgaf_ray.loop.rollouts import rollout_metrics
from rlgaf_ray.loop.tracking import Tracker
from rlgaf_ray.loop.update_ratio import UpdateRatio
from rlgaf_ray.objectives.rewards import discriminator_reward
from rlgaf_ray.types import (
    Demonstration,
    Metrics,
    PolicyNetwork,
    Prompt,
    Rollout,
    SamplingSettings,
    ScoredRollout,
    TextBlocks,
)

MAX_STALENESS = 0  # synchronous


class Display(Protocol):
    """Where a person watches."""

    def iteration(self, iteration: int, metrics: Metrics) -> None: ...

    def message(self, text: str) -> None: ...


@dataclass
class Outcome:
    """What a finished (or interrupted) run is told by."""

    iteration: int
    first: Metrics
    last: Metrics
    samples_before: list[str]
    samples_after: list[str]
    interrupted: bool


class AdversarialLoop:
    def __init__(
        self,
        config: Config,
        roles: Roles,
        task: Task,
        evaluator: Evaluator,
        tracker: Tracker,
        checkpoints: Checkpoints,
        display: Display,
    ) -> None:
        self.config = config
        self.roles = roles
        self.task = task
        self.evaluator = evaluator
        self.tracker = tracker
        self.checkpoints = checkpoints
        self.display = display
        self.iteration = 0
        self.discriminator_version = 0
        self.best: float | None = None
        self.first: Metrics = {}
        self.samples_before: list[str] = []
        self.stop_requested = False
        self.guard = Guard(config.guard, quality=config.best_metric)
        self.verdict = "healthy"  # what was last told of the guard
        self.heals = 0
        self.kl_coefficient = 0.0  # of the newest generator update
        self.update_ratio = UpdateRatio(
            config.discriminator.updates_per_generator_update, config.discriminator.update_ratio
        )
        self.trained_rows, held_out = set_apart(len(task.demonstrations), config.held_out_demonstrations)
        self.contrast = contrast_without(held_out, task.demonstrations, task.contrast)
        self.held_out = HeldOutAccuracy(held_out) if len(held_out) else None
        seed = config.run.seed
        self.pretraining: TextBlocks | None = None
        generator = config.generator
        if generator.algorithm == "ppo" and generator.ppo.pretraining_coefficient > 0:
            self.pretraining = task.warmup_blocks(config.task.prompt_tokens + config.task.response_tokens)
        elif generator.imitates:
            self.pretraining = demonstration_blocks([task.demonstrations[row] for row in self.trained_rows])
        self.streams = {
            name: PromptStream(num_items, seed=int(np.random.SeedSequence([seed, index]).generate_state(1)[0]))
            for index, (name, num_items) in enumerate(
                {
                    "prompts": len(self.trained_rows),
                    "real": len(self.trained_rows),
                    "contrast": max(1, len(self.contrast)),
                    "pretraining": 1 if self.pretraining is None else len(self.pretraining),
                }.items()
            )
        }

    def resume(self, path: Path, state: dict[str, Any]) -> None:
        """Take up the run where this checkpoint left it, down to the order of the prompts."""
        self.iteration = state["iteration"]
        self.discriminator_version = state["discriminator_version"]
        self.best = state["best"]
        self.first = state["first"]
        self.samples_before = state["samples_before"]
        self.verdict = state["verdict"]
        self.heals = state["heals"]
        self.kl_coefficient = state["kl_coefficient"]
        self.guard.load_state_dict(state["guard"])
        self.update_ratio.load_state_dict(state["update_ratio"])
        if self.held_out is not None and state["held_out"] is not None:
            self.held_out.load_state_dict(state["held_out"])
        self.evaluator.load_state_dict(state["evaluator"])
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"][name])
        self.roles.load(path, discriminator_version=self.discriminator_version)
        adjust(self)

    def push(self) -> None:
        """Give the roles each other's weights, at the start and after a rollback."""
        self.roles.push_weights(self.iteration)()
        if self.config.generator.algorithm == "gumbel":
            self.roles.push_discriminator()()

    def run(self) -> Outcome:
        """Train to ``run.iterations``, or until ``stop_requested`` is set; a checkpoint is written at either end.

        Raises ``TrainingStopped`` on the guard's word.
        """
        settings = self.config
        self.push()
        last: Metrics = {}
        samples: list[str] = []
        if self.iteration == 0:
            self.first, samples = self.evaluate()
            last, self.samples_before = self.first, samples
            self.tracker.log(0, self.first)
            self.display.iteration(0, self.first)
            if settings.guard.heals:
                self.save(best=False)
        carried: Metrics = {}  # a checkpoint's time stands in the next row: its own row must be written before it
        while self.iteration < settings.run.iterations and not self.stop_requested:
            metrics = carried | self.step()
            carried = {}
            iteration = self.iteration
            if settings.guard.non_finite != "warn" and not_finite(metrics):  # nothing to evaluate
                respond(self, self.guard.examine(iteration, metrics))
                continue
            ended = iteration == settings.run.iterations
            evaluated = ended or _every(iteration, settings.evaluation.every)
            if evaluated:
                with _timed(metrics, "time/evaluation"):
                    last, samples = self.evaluate()
                metrics |= last
            best = evaluated and self._is_best(last)
            verdict = self.guard.examine(iteration, metrics)
            metrics |= {"guard/healthy": float(verdict.kind == "healthy"), "guard/heals": float(self.heals)}
            self.tracker.log(iteration, metrics)
            self.display.iteration(iteration, metrics)
            if respond(self, verdict) == "rolled back":
                continue
            if ended or best or self.stop_requested or _every(iteration, settings.checkpoint.every):
                with _timed(carried, "time/checkpoint"):
                    self.save(best=best)
        if not last and not self.stop_requested:  # resumed at the end: only its measures are still asked for
            last, samples = self.evaluate()
        return Outcome(
            iteration=self.iteration,
            first=self.first,
            last=last,
            samples_before=self.samples_before,
            samples_after=samples,
            interrupted=self.iteration < settings.run.iterations,
        )

    def step(self) -> Metrics:
        """One iteration."""
        settings, roles = self.config, self.roles
        iteration = self.iteration + 1
        metrics: Metrics = {}
        with _timed(metrics, "time/iteration"):
            prompts = self._prompts()
            with _timed(metrics, "time/rollout"):
                rollouts = roles.generate(prompts, self.sampling(), self._seeds(iteration, settings.rollout.batch_size))
            staleness = self.iteration - min(rollout.policy_version for rollout in rollouts)
            assert 0 <= staleness <= MAX_STALENESS, (
                f"rollouts are {staleness} versions old, at most {MAX_STALENESS} allowed"
            )
            with _timed(metrics, "time/score"):
                scored = roles.score(rollouts)
                if self.held_out is not None:
                    real = roles.logits([self.task.demonstrations[row] for row in self.held_out.next_rows()])
                    metrics |= self.held_out.observe(real, [item.score for item in scored])
                    self.update_ratio.observe(metrics["discriminator/held_out_accuracy"])
            if settings.generator.algorithm == "seqgan":
                with _timed(metrics, "time/monte_carlo"):
                    scored = self._search(scored, iteration)
            with _timed(metrics, "time/generator_update"):
                pending_generator = roles.update_generator(
                    scored, iteration=iteration - 1, pretraining=self._pretraining()
                )
                num_updates = self.update_ratio.due()
                pending_discriminator = [
                    roles.update_discriminator(self._real(rollouts), rollouts, self._contrast(rollouts))
                    for _ in range(num_updates)
                ]
                pending_push = roles.push_weights(iteration)
                if num_updates and settings.generator.algorithm == "gumbel":
                    pending_discriminator.append(roles.push_discriminator())
                metrics |= rollout_metrics(rollouts, metrics["time/rollout"]) | {"rollout/staleness": float(staleness)}
                metrics |= pending_generator()
                if {"generator/kl", "generator/entropy"} <= metrics.keys():
                    metrics["rollout/reference_nll"] = metrics["generator/entropy"] + metrics["generator/kl"]
            with _timed(metrics, "time/push"):
                metrics |= {f"weights/{name}": value for name, value in pending_push().items()}
            with _timed(metrics, "time/discriminator_wait"):
                for pending in pending_discriminator:
                    metrics |= pending()
        self.discriminator_version += num_updates
        metrics["discriminator/updates"] = float(self.discriminator_version)
        metrics["discriminator/update_rate"] = self.update_ratio.rate
        metrics["rollout/samples_per_second"] = len(rollouts) / metrics["time/iteration"]
        self.iteration = iteration
        self.kl_coefficient = metrics.get("generator/kl_coefficient", self.kl_coefficient)
        self.tracker.log_rollouts(iteration, scored)
        return metrics

    def _search(self, scored: Sequence[ScoredRollout], iteration: int) -> list[ScoredRollout]:
        """The rollouts with Monte-Carlo action values: their prefixes completed by the policy, or its moving average.

        The engines then hold the average until the weights after the update are pushed.
        """
        settings = self.config.generator.seqgan
        if settings.rollout_policy_rate > 0:
            self.roles.push_weights(iteration - 1, network="rollout_policy")()
        rollouts = [item.rollout for item in scored]
        parts = prefixes(rollouts, stride=settings.stride, max_response_tokens=self.config.task.response_tokens)
        # Seeds of the rollouts come first: the completions' own are those after them.
        num_completions = len(parts) * settings.num_completions
        seeds = self._seeds(iteration, len(rollouts) + num_completions)[len(rollouts) :]
        completions = self.roles.generate(parts, self.sampling(samples_per_prompt=settings.num_completions), seeds)
        return with_action_values(
            scored,
            self._rewards(scored),
            self._rewards(self.roles.score(whole_responses(rollouts, completions))),
            stride=settings.stride,
            num_completions=settings.num_completions,
        )

    def _rewards(self, scored: Sequence[ScoredRollout]) -> np.ndarray:
        logits = torch.tensor([item.score for item in scored])
        return discriminator_reward(logits, kind=self.config.reward.kind).numpy()

    def evaluate(self) -> tuple[Metrics, list[str]]:
        """Measure the newest policy on the held-out prompts; the same prompts and random draws every time.

        With ``generator.average_decay`` its moving average is measured, which the engines hold meanwhile.
        """
        settings = self.config.evaluation
        network: PolicyNetwork = "average" if self.config.generator.average_decay > 0 else "policy"
        if network != "policy":
            self.roles.push_weights(self.iteration, network=network)()
        real = evaluation_set(self.task, settings.num_prompts)
        prompts = [Prompt(prompt_id=row, token_ids=item.prompt_ids) for row, item in enumerate(real)]
        sampling = self.sampling(samples_per_prompt=1)
        rollouts = self.roles.generate(prompts, sampling, self._seeds(EVALUATION, len(prompts)))
        if network != "policy":
            self.roles.push_weights(self.iteration)()
        metrics = self.evaluator(
            [rollout.response_ids for rollout in rollouts],
            decode([self.task.evaluated_ids(rollout) for rollout in rollouts], self.tracker.tokenizer),
            sample_nll=self.roles.mean_nll(rollouts, "reference"),
            real_nll=self.roles.mean_nll(real, network),
        )
        return metrics, whole_texts(rollouts[: settings.num_samples], self.tracker.tokenizer)

    def sampling(self, *, samples_per_prompt: int | None = None) -> SamplingSettings:
        settings = self.config.rollout
        return SamplingSettings(
            max_new_tokens=self.config.task.response_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            samples_per_prompt=samples_per_prompt or settings.samples_per_prompt,
            stop_at_end_of_text=self.config.stop_at_end_of_text,
        )

    def _seeds(self, iteration: int, count: int) -> list[int]:
        return [rollout_seed(self.config.run.seed, iteration, index) for index in range(count)]

    def _draw(self, stream: str, count: int) -> np.ndarray:
        return self.streams[stream].next(count)

    def _prompts(self) -> list[Prompt]:
        rows = self.trained_rows[self._draw("prompts", self.config.rollout.prompts_per_iteration)].tolist()
        return [Prompt(prompt_id=row, token_ids=self.task.demonstrations[row].prompt_ids) for row in rows]

    def _real(self, rollouts: Sequence[Rollout]) -> list[Demonstration]:
        demonstrations = self.task.demonstrations
        if self.config.discriminator.loss == "bradley_terry":  # pairs: the demonstration of each rollout's own prompt
            return [demonstrations[rollout.prompt_id] for rollout in rollouts]
        return [
            demonstrations[row] for row in self.trained_rows[self._draw("real", self.config.discriminator.batch_size)]
        ]

    def _contrast(self, rollouts: Sequence[Rollout]) -> list[Demonstration]:
        settings = self.config.discriminator
        if settings.contrast_weight == 0 or not self.contrast:
            return []
        count = len(rollouts) if settings.loss == "bradley_terry" else settings.batch_size
        return [self.contrast[row] for row in self._draw("contrast", count)]

    def _pretraining(self) -> TextBlocks | None:
        if self.pretraining is None:
            return None
        return self.pretraining[self._draw("pretraining", self.config.rollout.batch_size)]

    def _is_best(self, metrics: Metrics) -> bool:
        value = metrics[self.config.best_metric]
        if self.best is not None and value <= self.best:
            return False
        self.best = value
        return True

    def save(self, *, best: bool) -> None:
        guard = self.config.guard
        self.checkpoints.save(
            self.iteration,
            self.roles.save,
            self._state(),
            best=best,
            # A symptom that is a verdict in the iterations to come leads back to here, at the farthest.
            healthy_until=max(0, self.iteration - guard.window - guard.patience) if guard.heals else None,
        )

    def _state(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "policy_version": self.iteration,
            "discriminator_version": self.discriminator_version,
            "best": self.best,
            "first": self.first,
            "verdict": self.verdict,
            "heals": self.heals,
            "healthy": not self.guard.onsets,
            "kl_coefficient": self.kl_coefficient,
            "guard": self.guard.state_dict(),
            "update_ratio": self.update_ratio.state_dict(),
            "held_out": None if self.held_out is None else self.held_out.state_dict(),
            "samples_before": self.samples_before,
            "evaluator": self.evaluator.state_dict(),
            "streams": {name: stream.state_dict() for name, stream in self.streams.items()},
            "data_checksum": self.task.checksum,
        }


def _every(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0


@contextmanager
def _timed(metrics: Metrics, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    metrics[name] = time.perf_counter() - start
