"""The adversarial loop (RLGAF, algorithm 1). Its diagram, k = ``schedule.max_staleness`` (0 when synchronous)::

    who waits          for what                                      unblocked by
    -----------------  --------------------------------------------  ----------------------------------------------
    rollouts i         a slot, and the weights of version i - 1 - k  the learner, after update i - 1 - k
    scores i           rollouts i, and the discriminator's updates   the rollout workers; the discriminator itself
                       of iteration i - 1
    generator update   scores i, and its own last update             the discriminator
      i
    discriminator      rollouts i and the scores of them; on shared  the rollout workers; the learner
      updates i        cores also generator update i
    push of version i  generator update i; each engine also for the  the learner; the rollout worker
                       request it is at

    sync     rollouts i | score i | generator update i, push i      | rollouts i + 1 | score i + 1 | ...
                                  | discriminator updates i         |
    async    rollouts i + 1 (and up to i + k)      | rollouts i + 2 (and up to i + 1 + k)  | ...
             generator update i, push i            | generator update i + 1, push i + 1    | ...
             discriminator updates i | score i + 1 | discriminator updates i + 1 | score i + 2 | ...

The driver asks for work in the order of this file and waits for results alone; who has what when is the roles' own
business (``loop/schedule.py`` says when rollouts are asked for, ``actors/dispatch.py`` who makes them).
Rewards (``loop/rewards.py``) are made of the scores, and of the texts, between the score and the generator's update;
there SeqGAN completes prefixes of the rollouts, and scores and rewards the completions.
Gumbel-softmax pushes the discriminator to the learner after its updates: the next generator update waits for that.
Scores are taken before the discriminator trains on the rollouts, and it is frozen over all epochs of one batch.
Held-out demonstrations (``discriminator.held_out``) are scored with them, in the same passes, and with
``discriminator.overfit_gap`` as many that it trains on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.storage import Place
from rlgaf_ray.data.task import Task
from rlgaf_ray.engines.build import sampling_settings
from rlgaf_ray.engines.seeds import WARMUP
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.loop import healing
from rlgaf_ray.loop.callback import Callback, Callbacks
from rlgaf_ray.loop.checkpoint import Checkpoints, DamagedCheckpoint
from rlgaf_ray.loop.draws import Draws
from rlgaf_ray.loop.evaluation import Evaluation
from rlgaf_ray.loop.guard import Guard, Kind, TrainingStopped, Verdict, broken
from rlgaf_ray.loop.held_out import HeldOutAccuracy
from rlgaf_ray.loop.monte_carlo import search
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.loop.reward_functions import RewardFunction
from rlgaf_ray.loop.rewards import Rewards
from rlgaf_ray.loop.roles import Pending, PendingRollouts, PendingScores, Roles
from rlgaf_ray.loop.rollouts import rollout_metrics, rollout_seeds, without_liked
from rlgaf_ray.loop.schedule import Async, Schedule, Sync, timed
from rlgaf_ray.loop.update_ratio import UpdateRatio
from rlgaf_ray.metrics import metric, suggestion
from rlgaf_ray.tracking.base import Trackers
from rlgaf_ray.types import Metrics, Rollout


class AdversarialLoop:
    def __init__(
        self,
        config: Config,
        roles: Roles,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        evaluator: Evaluator,
        trackers: Trackers,
        checkpoints: Checkpoints,
        callbacks: Iterable[Callback] = (),
        rewards: Mapping[str, RewardFunction] | None = None,
    ) -> None:
        """``rewards``: the functions of ``reward.functions`` that were passed as arguments, by name."""
        self.config = config
        self.roles = roles
        self.task = task
        self.tokenizer = tokenizer
        self.evaluator = evaluator
        self.evaluation = Evaluation(config, roles, task, tokenizer, evaluator, trackers)
        self.trackers = trackers
        self.checkpoints = checkpoints
        self.callbacks = Callbacks(callbacks)
        self.rewards = Rewards(config, task, tokenizer, rewards)
        self.provenance: Mapping[str, str] = {}  # what the checkpoints record of data, models and versions
        self.iteration = 0
        self.discriminator_version = 0
        self.best: float | None = None
        self.first: Metrics = {}
        self.samples_before: list[str] = []
        # Of the last whole iteration, and whether it is the best, while no checkpoint has it and nobody was asked for
        # the next one's updates.
        self.unsaved: tuple[dict[str, Any], bool] | None = None
        contrast = config.discriminator.needs.contrast
        self.guard = Guard(config.guard, quality=config.best_metric, contrast=contrast)
        self.verdict: Kind = "healthy"  # the last one, which has been reported
        self.healed: list[Kind] = []  # the verdict of each heal
        self.kl_coefficient = 0.0  # of the newest generator update
        self.update_ratio = UpdateRatio(
            config.discriminator.updates_per_generator_update, config.discriminator.update_ratio
        )
        self.draws = Draws(config, task, roles.batch_needs())
        held_out = self.draws.held_out_rows
        beside = None if config.discriminator.overfit_gap is None else self.draws.trained_rows
        self.held_out = HeldOutAccuracy(held_out, beside) if len(held_out) else None
        self.pushes: deque[Pending] = deque()  # not waited for yet, oldest first
        prompts = self.draws.prompt_stream
        self.schedule: Schedule
        match config.schedule.mode:
            case "sync":
                self.schedule = Sync(self._start_rollouts, self._start_score, prompts)
            case "async":
                self.schedule = Async(
                    self._start_rollouts,
                    self._start_score,
                    prompts,
                    roles,
                    max_staleness=config.max_staleness,
                    iterations=config.run.iterations,
                )

    def resume(self, path: Place, state: dict[str, Any]) -> None:
        """Take up the run where this checkpoint left it, down to the order of the prompts."""
        self.iteration = state["iteration"]
        self.discriminator_version = state["discriminator_version"]
        self.best = state["best"]
        self.first = state["first"]
        self.samples_before = state["samples_before"]
        self.verdict = state["verdict"]
        self.healed = state["healed"]
        self.kl_coefficient = state["kl_coefficient"]
        self.guard.load_state_dict(state["guard"])
        self.update_ratio.load_state_dict(state["update_ratio"])
        if self.held_out is not None and state["held_out"] is not None:
            self.held_out.load_state_dict(state["held_out"])
        self.evaluator.load_state_dict(state["evaluator"])
        self.schedule.drop()
        self.pushes.clear()
        self.draws.load_state_dict(state["streams"])
        self.roles.load(path, discriminator_version=self.discriminator_version)
        self._adjust()

    def push(self) -> None:
        """Give the roles each other's weights, at the start and after a rollback."""
        self.roles.push_weights(self.iteration)()
        if self.config.generator.active.needs_discriminator:
            self.roles.push_discriminator()()

    def warm_up_discriminator(self) -> None:
        """Update the discriminator alone, on rollouts of the SFT model for the demonstrations' prompts.

        The batches, the loss and its weights are those of training: what the discriminator learns here is what it will
        judge.
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
            self.callbacks.on_discriminator_warmup(update, total, pending())
        if total and self.config.generator.active.needs_discriminator:
            self.roles.push_discriminator()()

    @property
    def stop_requested(self) -> bool:
        return self.callbacks.stop_requested

    def run(self) -> Outcome:
        """Train to ``run.iterations``, or until a callback asks for a stop; a checkpoint is written at either end.

        Raises ``TrainingStopped`` on the guard's word.
        """
        settings = self.config
        self.push()
        last: Metrics = {}
        samples: list[str] = []
        if self.iteration == 0:
            self.warm_up_discriminator()
            self.first, samples = self.evaluate()
            last, self.samples_before = self.first, samples
            self.trackers.log(0, self.first)
            self.callbacks.on_iteration(0, self.first)
            self.callbacks.on_evaluation(0, self.first)
            if settings.guard.heals:
                self.save(best=False)
        self._check_best_metric()
        carried: Metrics = {}  # a checkpoint's time stands in the next row: its own row must be written before it
        while self.iteration < settings.run.iterations and not self.stop_requested:
            metrics = carried | self.step()
            carried = {}
            iteration = self.iteration
            with timed(metrics, "time/guards"):
                hopeless = settings.guard.non_finite != "warn" and broken(metrics)  # nothing to evaluate or to keep
            ended = iteration == settings.run.iterations
            evaluated = not hopeless and (ended or _every(iteration, settings.evaluation.every))
            if evaluated:
                with timed(metrics, "time/evaluation"):
                    last, samples = self.evaluate()
                metrics |= last
            elif not hopeless and _every(iteration, settings.evaluation.quick_every):
                with timed(metrics, "time/evaluation"):
                    metrics |= self.quick_evaluation()
            with timed(metrics, "time/guards"):
                verdict = self.guard.examine(iteration, metrics)
            best = evaluated and "non_finite" not in self.guard.onsets and self._is_best(last)
            metrics |= {"guard/healthy": float(verdict.kind == "healthy"), "guard/heals": float(len(self.healed))}
            self.trackers.log(iteration, metrics)
            self.callbacks.on_iteration(iteration, metrics)
            if evaluated:
                self.callbacks.on_evaluation(iteration, last)
            if (verdict.kind, self.verdict) != ("healthy", "healthy"):
                self.callbacks.on_verdict(iteration, verdict)
            if self._act_on(verdict) == "rolled back":
                continue
            if ended or best or self.stop_requested or _every(iteration, settings.checkpoint.every):
                with timed(carried, "time/checkpoint"):
                    self.save(best=best)
            else:
                self.unsaved = self._state(), best
        if self.unsaved is not None:  # asked to stop after the last look
            self._write(self.roles.save)
        if not last and not self.stop_requested:  # resumed at the end: only its measures are still asked for
            last, samples = self.evaluate()
        outcome = Outcome(
            config=settings,
            iteration=self.iteration,
            first=self.first,
            last=last,
            samples_before=self.samples_before,
            samples_after=samples,
        )
        if not outcome.interrupted:
            table = [{"before": before, "after": after} for before, after in outcome.samples]
            self.trackers.log_table(self.iteration, "samples", table)
        return outcome

    def step(self) -> Metrics:
        """One iteration."""
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
                self.unsaved = None
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
                # while the learner is at its update
                self.trackers.log_rollouts(iteration, scored, self.tokenizer, rewarded.columns)
                metrics |= rewarded.metrics | pending_generator()
                if {"generator/kl", "generator/entropy"} <= metrics.keys():
                    metrics["rollout/reference_nll"] = metrics["generator/entropy"] + metrics["generator/kl"]
            with timed(metrics, "time/push"):
                if len(self.pushes) > settings.max_staleness:  # its rollouts are there, so the engines have it
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
        self.kl_coefficient = metrics.get("generator/kl_coefficient", self.kl_coefficient)
        return metrics

    def evaluate(self) -> tuple[Metrics, list[str]]:
        return self.evaluation.full(self.iteration)

    def quick_evaluation(self) -> Metrics:
        return self.evaluation.quick(self.iteration)

    def _start_rollouts(self, iteration: int) -> PendingRollouts:
        seeds = rollout_seeds(self.config, iteration, self.config.rollout.batch_size)
        return self.roles.start_generate(self.draws.prompts(), sampling_settings(self.config), seeds)

    def _start_score(self, iteration: int, rollouts: list[Rollout]) -> PendingScores:
        rows = [] if self.held_out is None else self.held_out.rows_of(iteration)
        return self.roles.start_score(rollouts, [self.task.demonstrations[row] for row in rows])

    def _check_best_metric(self) -> None:
        """Raise ``UserError`` before any training where no evaluation has the metric that marks the best checkpoint."""
        name, known = self.config.best_metric, [each for each in self.first if each.startswith("eval/")]
        if name not in self.first:
            raise UserError(f"evaluation.best_metric={name} is not measured: {suggestion(name, known)}")

    def _is_best(self, metrics: Metrics) -> bool:
        name = self.config.best_metric
        value = metric(name).sign * metrics[name]
        if self.best is not None and value <= self.best:
            return False
        self.best = value
        return True

    def _act_on(self, verdict: Verdict) -> Literal["gone on", "rolled back"]:
        """Raises ``TrainingStopped`` where the run is to end."""
        decision = healing.respond(
            verdict, healing.Health(self.iteration, self.verdict, self.healed), self.config.guard
        )
        self.verdict = verdict.kind
        match decision:
            case healing.GoOn(action, sentence):
                if action is not None:
                    self._record(verdict, action)
                    self.callbacks.on_message(sentence)
            case healing.Heal():
                self._heal(verdict, decision)
                return "rolled back"
            case healing.Stop(sentence, advice):
                self._record(verdict, "stop")
                raise TrainingStopped(f"{sentence}; {self.checkpoints.intact()}: {advice}")
        return "gone on"

    def _heal(self, verdict: Verdict, decision: healing.Heal) -> None:
        """Back to the newest healthy checkpoint, gentler. Raises ``TrainingStopped`` where none is left."""
        settings, ratio, sick_at = self.config.guard, self.update_ratio, self.iteration
        path, state = self._last_healthy(verdict, decision)
        coefficient = healing.kl_coefficient(settings.heal, verdict.kind, self.kl_coefficient)
        new_heals = decision.heals[len(state["healed"]) :]  # that the checkpoint does not know of
        self.checkpoints.cut(state["iteration"])
        if self.checkpoints.named("best") is None:
            state["best"] = None
        self.resume(path, state)
        self.guard.evaluations.clear()  # gentler settings may end lower and sound: drift is judged from here on
        if ratio.adaptive:
            ratio.rate = healing.update_rate(settings.heal, new_heals, ratio.rate)
            ratio.move(1.0)
        self.healed, self.kl_coefficient, self.verdict = decision.heals, coefficient, "healthy"
        self._adjust(kl_coefficient=coefficient, refresh=True)
        self.trackers.rewind(self.iteration)
        self.save(best=False)
        self.push()
        factor = healing.learning_rate_factor(settings.heal, self.healed)
        self._record(
            verdict,
            "heal",
            iteration=sick_at,
            back_to=self.iteration,
            learning_rate_factor=factor,
            update_rate=ratio.rate,
            kl_coefficient=coefficient,
        )
        self.callbacks.on_message(
            f"{decision.sentence}; heal {len(self.healed)} of {settings.max_heals}: back to iteration "
            f"{self.iteration}, learning rates x {factor:g}, {ratio.rate:.3g} discriminator updates per generator "
            f"update, KL coefficient {coefficient:g}"
        )

    def _last_healthy(self, verdict: Verdict, decision: healing.Heal) -> tuple[Place, dict[str, Any]]:
        for path in self.checkpoints.healthy(verdict.sound_until):
            try:
                return path, self.checkpoints.load_state(path)
            except DamagedCheckpoint as error:
                self.callbacks.on_message(f"damaged checkpoint passed over: {error}")
        left = f"no healthy checkpoint of iteration {verdict.sound_until} or before is left"
        raise TrainingStopped(f"{decision.sentence}; {left}")

    def _adjust(self, *, kl_coefficient: float | None = None, refresh: bool = False) -> None:
        """Set what follows from the heals; the KL coefficient is in the learner's checkpoint."""
        settings, rate = self.config.guard.heal, self.config.discriminator.updates_per_generator_update
        if not self.update_ratio.adaptive:
            self.update_ratio.rate = healing.update_rate(settings, self.healed, rate)
        factor = healing.learning_rate_factor(settings, self.healed)
        self.roles.adjust(learning_rate_factor=factor, kl_coefficient=kl_coefficient, refresh=refresh)

    def _record(self, verdict: Verdict, action: str, **more: float) -> None:
        """To ``guard.jsonl``."""
        self.trackers.log_verdict(
            {
                "iteration": self.iteration,
                "verdict": verdict.kind,
                "onset": verdict.onset,
                "evidence": verdict.evidence,
                "action": action,
                "heals": len(self.healed),
            }
            | more
        )

    def save(self, *, best: bool) -> None:
        self.unsaved = self._state(), best
        self._write(self.roles.save)

    def rescue(self) -> None:
        """After a failure: save the last whole iteration, where the actors that are left still have all of it.

        Nothing is repeated then. A failure is told and does no harm: the last checkpoint is there.
        """
        if self.unsaved is None:
            return
        try:
            self._write(self.roles.rescue)
        except Exception as error:  # the loss is what ends the run, or takes it back
            self.callbacks.on_message(f"iteration {self.iteration} could not be saved: {error}")
        else:
            self.callbacks.on_message(f"iteration {self.iteration} was saved")

    def _write(self, write: Callable[[Place], None]) -> None:
        """What is ``unsaved``; ``write`` is the roles' part."""
        assert self.unsaved is not None
        state, best = self.unsaved
        folder = self.checkpoints.save(
            self.iteration,
            write,
            state,
            best=best,
            # A symptom that is a verdict in the iterations to come leads back to here, at the farthest.
            healthy_until=self.guard.earliest_rollback(self.iteration) if self.config.guard.heals else None,
        )
        self.unsaved = None
        self.callbacks.on_checkpoint(self.iteration, folder)

    def _state(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "discriminator_version": self.discriminator_version,
            "best": self.best,
            "first": self.first,
            "verdict": self.verdict,
            "healed": self.healed,
            "healthy": not self.guard.onsets,
            "kl_coefficient": self.kl_coefficient,
            "guard": self.guard.state_dict(),
            "update_ratio": self.update_ratio.state_dict(),
            "held_out": None if self.held_out is None else self.held_out.state_dict(),
            "samples_before": self.samples_before,
            "evaluator": self.evaluator.state_dict(),
            "streams": self.draws.state_dict() | {"prompts": self.schedule.prompts_state()},
            "provenance": dict(self.provenance),
        }


def _every(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
