"""One training iteration: rollouts, scores and rewards, then the updates of both networks.

Dependencies, with k = ``schedule.max_staleness`` (0 in sync mode)::

    work               waits for                                     unblocked by
    -----------------  --------------------------------------------  ----------------------------------------------
    rollouts i         a slot, and the weights of version i - 1 - k  the learner, after update i - 1 - k
    scores i           rollouts i, and the discriminator's updates   the rollout workers; the discriminator itself
                       of iteration i - 1
    generator update   scores i, and the previous generator update   the discriminator
      i
    discriminator      rollouts i and their scores; on shared cores  the rollout workers; the learner
      updates i        also generator update i
    push of version i  generator update i; each engine also for its  the learner; the rollout worker
                       current request

    sync     rollouts i | score i | generator update i, push i      | rollouts i + 1 | score i + 1 | ...
                                  | discriminator updates i         |
    async    rollouts i + 1 (and up to i + k)      | rollouts i + 2 (and up to i + 1 + k)  | ...
             generator update i, push i            | generator update i + 1, push i + 1    | ...
             discriminator updates i | score i + 1 | discriminator updates i + 1 | score i + 2 | ...

The driver requests work in the order of this file and blocks on results only. ``loop/schedule.py`` decides when
rollouts are requested, ``actors/dispatch.py`` which worker samples them.
Rewards (``loop/rewards.py``) are computed in the driver from scores and texts, before the generator update; SeqGAN then
completes prefixes of the rollouts, and scores and rewards the completions.
Gumbel-softmax pushes the discriminator to the learner after its updates; the next generator update waits for that.
Rollouts are scored before the discriminator trains on them, and it is frozen over all epochs of a batch. Held-out
demonstrations (``discriminator.held_out``) are scored in the same forward passes, and with
``discriminator.overfit_gap`` as many training demonstrations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.task import Task
from rlgaf_ray.engines.build import sampling_settings
from rlgaf_ray.engines.seeds import WARMUP
from rlgaf_ray.loop.draws import Draws
from rlgaf_ray.loop.held_out import HeldOutAccuracy
from rlgaf_ray.loop.monte_carlo import search
from rlgaf_ray.loop.reward_functions import RewardFunction
from rlgaf_ray.loop.rewards import Rewards
from rlgaf_ray.loop.roles import Pending, PendingRollouts, PendingScores, Roles
from rlgaf_ray.loop.rollouts import rollout_metrics, rollout_seeds, without_liked
from rlgaf_ray.loop.schedule import Async, Schedule, Sync, timed
from rlgaf_ray.loop.update_ratio import UpdateRatio
from rlgaf_ray.tracking.base import Trackers
from rlgaf_ray.types import Demonstration, Metrics, Rollout


class TrainingStep:
    """Trains both networks for one iteration per call, and keeps the state between iterations.

    Attributes:
        iteration: the last completed iteration; also the version of the generator's weights.
        updating: updates of the next iteration were requested, so the actors no longer hold this iteration's state.
        discriminator_version: number of discriminator updates so far, including its warm-up.
        kl_coefficient: KL coefficient of the last generator update.
    """

    def __init__(
        self,
        config: Config,
        roles: Roles,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        trackers: Trackers,
        rewards: Mapping[str, RewardFunction] | None,
        contrast: Sequence[Demonstration] | None = None,
    ) -> None:
        self.config = config
        self.roles = roles
        self.task = task
        self.tokenizer = tokenizer
        self.trackers = trackers
        self.rewards = Rewards(config, task, tokenizer, rewards)
        self.iteration = 0
        self.updating = False
        self.discriminator_version = 0
        self.kl_coefficient = 0.0
        self.update_ratio = UpdateRatio(
            config.discriminator.updates_per_generator_update, config.discriminator.update_ratio
        )
        self.draws = Draws(config, task, roles.batch_needs(), contrast)
        held_out = self.draws.held_out_rows
        train_rows = None if config.discriminator.overfit_gap is None else self.draws.trained_rows
        self.held_out = HeldOutAccuracy(held_out, train_rows) if len(held_out) else None
        self.pushes: deque[Pending] = deque()  # in flight, oldest first
        self.schedule = self._schedule()

    def warm_up_discriminator(self, report: Callable[[int, int, Metrics], None]) -> None:
        """Train the discriminator alone, on rollouts of the SFT model for the prompts of the demonstrations.

        Batches, loss and class weights are the same as in training. ``report(update, total, metrics)`` is called after
        every update.
        """
        total, count = self.config.discriminator_warmup_updates, self.config.discriminator_warmup_rollouts
        for update in range(1, total + 1):
            seeds = rollout_seeds(self.config, WARMUP + update, count)
            rollouts = self.roles.generate(self.draws.warmup_prompts(), sampling_settings(self.config), seeds)
            if (liked := self.config.discriminator.leave_out_liked) > 0:
                rollouts = without_liked(self.roles.score(rollouts), liked)
            real, contrast = self.draws.real(rollouts), self.draws.contrast(rollouts)
            pending = self.roles.update_discriminator(real, rollouts, contrast)
            self.discriminator_version += 1
            report(update, total, pending())
        if total and self.config.generator.active.needs_discriminator:
            self.roles.push_discriminator()()

    def __call__(self) -> Metrics:
        """Run the next iteration."""
        settings, roles = self.config, self.roles
        iteration = self.iteration + 1
        metrics: Metrics = {}
        with timed(metrics, "time/iteration"):
            batch = self.schedule.next(iteration, metrics)
            scored, rollouts = batch.scored, batch.rollouts
            with timed(metrics, "time/guards"):
                staleness = self.iteration - min(rollout.policy_version for rollout in rollouts)
                assert 0 <= staleness <= settings.max_staleness, (
                    f"rollouts are {staleness} versions old, at most {settings.max_staleness} allowed"
                )
            if self.held_out is not None:
                share = len(batch.held_out_logits) / (len(batch.held_out_logits) + len(scored))
                metrics["time/guards"] += share * metrics["time/score"]
                with timed(metrics, "time/guards"):
                    metrics |= self.held_out.observe(batch.held_out_logits, [item.score for item in scored])
                    if "discriminator/held_out_accuracy" in metrics:
                        self.update_ratio.observe(metrics["discriminator/held_out_accuracy"])
            with timed(metrics, "time/reward"):
                rewarded = self.rewards(scored, iteration)
                scored = rewarded.scored
            if settings.generator.active.searches:
                with timed(metrics, "time/monte_carlo"):
                    scored = search(roles, settings, self.rewards, scored, iteration)
            with timed(metrics, "time/generator_update"):
                pending_generator = roles.update_generator(
                    scored, iteration=iteration - 1, text=self.draws.text_beside(rollouts)
                )
                self.updating = True
                num_updates = self.update_ratio.due()
                if (limit := settings.discriminator.overfit_gap) is not None:
                    num_skipped = num_updates if metrics.get("discriminator/overfit_gap", 0.0) > limit else 0
                    num_updates -= num_skipped
                    metrics["discriminator/skipped_updates"] = float(num_skipped)
                fake = without_liked(self.draws.comparable(batch.scored), settings.discriminator.leave_out_liked)
                pending_discriminator = [
                    roles.update_discriminator(self.draws.real(fake), fake, self.draws.contrast(fake))
                    for _ in range(num_updates)
                ]
                self.pushes.append(roles.push_weights(iteration))
                if num_updates and settings.generator.active.needs_discriminator:
                    pending_discriminator.append(roles.push_discriminator())
                metrics |= rollout_metrics(rollouts, batch.seconds) | {"rollout/staleness": float(staleness)}
            self.schedule.pushed(iteration, metrics)
            with timed(metrics, "time/generator_update"):
                # overlaps with the generator update
                self.trackers.log_rollouts(iteration, scored, self.tokenizer, rewarded.columns)
                metrics |= rewarded.metrics | pending_generator()
                if {"generator/kl", "generator/entropy"} <= metrics.keys():
                    metrics["rollout/reference_nll"] = metrics["generator/entropy"] + metrics["generator/kl"]
            with timed(metrics, "time/push"):
                if len(self.pushes) > settings.max_staleness:  # complete, since rollouts of this version have arrived
                    metrics |= {f"weights/{name}": value for name, value in self.pushes.popleft()().items()}
                    metrics["time/guards"] += metrics.get("weights/check_seconds", 0.0)
            with timed(metrics, "time/discriminator_wait"):
                skipped = 0.0
                for pending in pending_discriminator:
                    metrics |= pending()
                    skipped += metrics.pop("discriminator/skipped_steps", 0.0)
                if num_updates:
                    metrics["discriminator/skipped_steps"] = skipped
        self.discriminator_version += num_updates
        metrics["discriminator/updates"] = float(self.discriminator_version)
        metrics["discriminator/update_rate"] = self.update_ratio.rate
        replaced, repeated, rollbacks = map(float, roles.recovered())
        metrics |= {"rollout/workers_replaced": replaced, "rollout/prompts_repeated": repeated}
        metrics["recovery/rollbacks"] = rollbacks
        metrics["rollout/samples_per_second"] = len(rollouts) / metrics["time/iteration"]
        self.iteration = iteration
        self.updating = False
        self.kl_coefficient = metrics.get("generator/kl_coefficient", self.kl_coefficient)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "discriminator_version": self.discriminator_version,
            "kl_coefficient": self.kl_coefficient,
            "update_ratio": self.update_ratio.state_dict(),
            "held_out": None if self.held_out is None else self.held_out.state_dict(),
            "streams": self.draws.state_dict() | {"prompts": self.schedule.prompts_state()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.iteration = state["iteration"]
        self.updating = False
        self.discriminator_version = state["discriminator_version"]
        self.kl_coefficient = state["kl_coefficient"]
        self.update_ratio.load_state_dict(state["update_ratio"])
        if self.held_out is not None and state["held_out"] is not None:
            self.held_out.load_state_dict(state["held_out"])
        self.schedule.drop()
        self.pushes.clear()
        self.draws.load_state_dict(state["streams"])

    def _schedule(self) -> Schedule:
        prompts = self.draws.prompt_stream
        match self.config.schedule.mode:
            case "sync":
                return Sync(self._start_rollouts, self._start_score, prompts)
            case "async":
                return Async(
                    self._start_rollouts,
                    self._start_score,
                    prompts,
                    self.roles,
                    max_staleness=self.config.max_staleness,
                    iterations=self.config.run.iterations,
                )

    def _start_rollouts(self, iteration: int) -> PendingRollouts:
        seeds = rollout_seeds(self.config, iteration, self.config.rollout.batch_size)
        return self.roles.start_generate(self.draws.prompts(), sampling_settings(self.config), seeds)

    def _start_score(self, iteration: int, rollouts: list[Rollout]) -> PendingScores:
        rows = [] if self.held_out is None else self.held_out.rows_of(iteration)
        return self.roles.start_score(rollouts, [self.task.demonstrations[row] for row in rows])
