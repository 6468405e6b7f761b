"""The adversarial loop (RLGAF, algorithm 1): training steps, evaluations, checkpoints and rollbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.storage import Place
from rlgaf_ray.data.task import Task
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.loop import healing
from rlgaf_ray.loop.callback import Callback, Callbacks
from rlgaf_ray.loop.checkpoint import PROVENANCE, Checkpoints
from rlgaf_ray.loop.evaluation import NOT_EVALUATED, BestMetric, Evaluated, Evaluation
from rlgaf_ray.loop.guard import Guard, Kind, TrainingStopped, Verdict
from rlgaf_ray.loop.non_finite import broken
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.loop.reward_functions import RewardFunction
from rlgaf_ray.loop.roles import Roles
from rlgaf_ray.loop.schedule import timed
from rlgaf_ray.loop.step import TrainingStep
from rlgaf_ray.tracking.base import Trackers
from rlgaf_ray.types import Demonstration, Metrics


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
        contrast: Sequence[Demonstration] | None = None,
    ) -> None:
        """``rewards``: passed functions, by name; ``contrast``: the discriminator's, by default labelled negatives."""
        self.config = config
        self.roles = roles
        self.task = task
        self.tokenizer = tokenizer
        self.evaluator = evaluator
        self.evaluation = Evaluation(config, roles, task, tokenizer, evaluator, trackers)
        self.trackers = trackers
        self.checkpoints = checkpoints
        self.callbacks = Callbacks(callbacks)
        self.train_step = TrainingStep(config, roles, task, tokenizer, trackers, rewards, contrast)
        self.provenance: Mapping[str, str] = {}  # data, models and versions, stored in every checkpoint
        self.best = BestMetric(config.best_metric)
        self.first: Metrics = {}
        self.samples_before: list[str] = []
        self.last = NOT_EVALUATED  # since the SFT model's
        # State of the last completed iteration and whether it is the best one; None once it is checkpointed.
        self.unsaved: tuple[dict[str, Any], bool] | None = None
        self.guard = Guard(config.guard, quality=config.best_metric, contrast=config.discriminator.needs.contrast)
        self.verdict: Kind = "healthy"  # of the last reported verdict
        self.healed: list[Kind] = []  # the verdict behind each rollback

    @property
    def iteration(self) -> int:
        """The last completed iteration."""
        return self.train_step.iteration

    def resume(self, path: Place, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint, including the order of the prompts."""
        self.train_step.load_state_dict(state)
        self.unsaved = None
        self.best.value = state["best"]
        self.first, self.samples_before = state["first"], state["samples_before"]
        self.last = Evaluated(*state["last"])
        self.verdict, self.healed = state["verdict"], state["healed"]
        self.guard.load_state_dict(state["guard"])
        self.evaluator.load_state_dict(state["evaluator"])
        self.roles.load(path, discriminator_version=self.train_step.discriminator_version)
        self._adjust()

    def push(self) -> None:
        """Push weights to the engines, and the discriminator to a learner that needs it; at start and rollback."""
        self.roles.push_weights(self.iteration)()
        if self.config.generator.active.needs_discriminator:
            self.roles.push_discriminator()()

    def warm_up_discriminator(self) -> None:
        """Do the discriminator's warm-up on rollouts, unless it is already done."""
        if self.train_step.discriminator_version == 0:
            self.train_step.warm_up_discriminator(self.callbacks.on_discriminator_warmup)

    @property
    def stop_requested(self) -> bool:
        return self.callbacks.stop_requested

    def run(self) -> Outcome:
        """Train to ``run.iterations`` or until a callback requests a stop; both end with a checkpoint.

        Raises ``TrainingStopped`` if the guard stops the run.
        """
        settings = self.config
        self.push()
        if self.iteration == 0:
            self.warm_up_discriminator()
            self.first, self.samples_before = self.evaluate()
            self.trackers.log(0, self.first)
            self.callbacks.on_iteration(0, self.first)
            self.callbacks.on_evaluation(0, self.first)
            if settings.guard.heals:
                self.save(best=False)
        self.best.check(self.first)
        carried: Metrics = {}  # time of a checkpoint, logged with the next iteration: the row of this one precedes it
        while self.iteration < settings.run.iterations and not self.stop_requested:
            metrics = carried | self.train_step()
            self.unsaved = None  # the actors hold the next iteration now
            carried = {}
            iteration = self.iteration
            with timed(metrics, "time/guards"):
                non_finite = settings.guard.non_finite != "warn" and broken(metrics)  # not worth an evaluation
            ended = iteration == settings.run.iterations
            evaluated = not non_finite and (ended or _every(iteration, settings.evaluation.every))
            if evaluated:
                with timed(metrics, "time/evaluation"):
                    self.last = Evaluated(iteration, *self.evaluate())
                metrics |= self.last.metrics
            elif not non_finite and _every(iteration, settings.evaluation.quick_every):
                with timed(metrics, "time/evaluation"):
                    metrics |= self.quick_evaluation()
            with timed(metrics, "time/guards"):
                verdict = self.guard.examine(iteration, metrics)
            best = evaluated and "non_finite" not in self.guard.onsets and self.best.improves(self.last.metrics)
            metrics |= {"guard/healthy": float(verdict.kind == "healthy"), "guard/heals": float(len(self.healed))}
            self.trackers.log(iteration, metrics)
            self.callbacks.on_iteration(iteration, metrics)
            if evaluated:
                self.callbacks.on_evaluation(iteration, self.last.metrics)
            if (verdict.kind, self.verdict) != ("healthy", "healthy"):
                self.callbacks.on_verdict(iteration, verdict)
            if self._act_on(verdict) == "rolled back":
                continue
            if ended or best or self.stop_requested or _every(iteration, settings.checkpoint.every):
                with timed(carried, "time/checkpoint"):
                    self.save(best=best)
            else:
                self.unsaved = self._state(), best
        if self.unsaved is not None:  # the stop was requested after the checkpoint decision
            self._write(self.roles.save)
        if self.last.iteration < self.iteration and not self.stop_requested:  # resumed after the last iteration
            self.last = Evaluated(self.iteration, *self.evaluate())
        outcome = Outcome(
            config=settings,
            iteration=self.iteration,
            first=self.first,
            evaluated=self.last.iteration,
            last=self.last.metrics,
            samples_before=self.samples_before,
            samples_after=self.last.samples,
        )
        if not outcome.interrupted:
            self.trackers.log_table(self.iteration, "samples", [{"before": a, "after": b} for a, b in outcome.samples])
        return outcome

    def evaluate(self) -> tuple[Metrics, list[str]]:
        return self.evaluation.full(self.iteration)

    def quick_evaluation(self) -> Metrics:
        return self.evaluation.quick(self.iteration)

    def _act_on(self, verdict: Verdict) -> Literal["continue", "rolled back"]:
        """Act on the verdict as configured. Raises ``TrainingStopped`` if the run has to stop."""
        health = healing.Health(self.iteration, self.verdict, self.healed)
        decision = healing.respond(verdict, health, self.config.guard)
        self.verdict = verdict.kind
        match decision:
            case healing.Continue(action, sentence):
                if action is not None:
                    self._record(verdict, action)
                    self.callbacks.on_message(sentence)
            case healing.Heal():
                self._heal(verdict, decision)
                return "rolled back"
            case healing.Stop(sentence, advice):
                self._record(verdict, "stop")
                raise TrainingStopped(f"{sentence}; {self.checkpoints.intact()}: {advice}")
        return "continue"

    def _heal(self, verdict: Verdict, decision: healing.Heal) -> None:
        """Roll back to the newest healthy checkpoint, with gentler settings; ``TrainingStopped`` if there is none."""
        settings, step, fired_at = self.config.guard, self.train_step, self.iteration
        ratio = step.update_ratio
        found, damage = self.checkpoints.newest_healthy(verdict.last_healthy)
        for error in damage:
            self.callbacks.on_message(f"damaged checkpoint skipped: {error}")
        if found is None:
            missing = f"there is no healthy checkpoint up to iteration {verdict.last_healthy} to roll back to"
            raise TrainingStopped(f"{decision.sentence}; {missing}")
        path, state = found
        coefficient = healing.kl_coefficient(settings.heal, verdict.kind, step.kl_coefficient)
        self.checkpoints.discard_after(state["iteration"])
        if self.checkpoints.named("best") is None:
            state["best"] = None
        self.resume(path, state)
        self.guard.evaluations.clear()  # gentler settings may reach lower quality: restart drift detection
        if ratio.adaptive:
            ratio.rate = healing.update_rate(settings.heal, decision.heals[len(state["healed"]) :], ratio.rate)
            ratio.move(1.0)
        self.healed, self.verdict, step.kl_coefficient = decision.heals, "healthy", coefficient
        self._adjust(kl_coefficient=coefficient, refresh=True)
        self.trackers.rewind(self.iteration)
        self.save(best=False)
        self.push()
        factor = healing.learning_rate_factor(settings.heal, self.healed)
        self._record(
            verdict,
            "heal",
            iteration=fired_at,
            back_to=self.iteration,
            learning_rate_factor=factor,
            update_rate=ratio.rate,
            kl_coefficient=coefficient,
        )
        self.callbacks.on_message(
            f"{decision.sentence}; rollback {len(self.healed)} of {settings.max_heals} to iteration {self.iteration}: "
            f"learning rates x {factor:g}, {ratio.rate:.3g} discriminator updates per generator update, KL coefficient "
            f"{coefficient:g}"
        )

    def _adjust(self, *, kl_coefficient: float | None = None, refresh: bool = False) -> None:
        """Apply update rate and learning rates after all rollbacks; the KL coefficient is in the checkpoint."""
        settings, rate = self.config.guard.heal, self.config.discriminator.updates_per_generator_update
        if not self.train_step.update_ratio.adaptive:
            self.train_step.update_ratio.rate = healing.update_rate(settings, self.healed, rate)
        factor = healing.learning_rate_factor(settings, self.healed)
        self.roles.adjust(learning_rate_factor=factor, kl_coefficient=kl_coefficient, refresh=refresh)

    def _record(self, verdict: Verdict, action: str, **more: float) -> None:
        """Append an event to ``guard.jsonl``."""
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
        """Checkpoint the last completed iteration after a failure, if the surviving actors hold all of its state.

        A restart then repeats nothing. If saving fails, this is reported, and the last checkpoint remains.
        """
        if self.unsaved is None or self.train_step.updating:
            return
        try:
            self._write(self.roles.rescue)
        except Exception as error:  # the original failure aborts or restarts the run
            self.callbacks.on_message(f"iteration {self.iteration} could not be saved: {error}")
        else:
            self.callbacks.on_message(f"iteration {self.iteration} was saved")

    def _write(self, write: Callable[[Place], None]) -> None:
        """Write the ``unsaved`` state as a checkpoint; ``write`` saves the roles."""
        assert self.unsaved is not None
        state, best = self.unsaved
        folder = self.checkpoints.save(
            self.iteration,
            write,
            state,
            best=best,
            healthy_until=self.guard.earliest_rollback(self.iteration) if self.config.guard.heals else None,
        )
        self.unsaved = None
        self.callbacks.on_checkpoint(self.iteration, folder)

    def _state(self) -> dict[str, Any]:
        return self.train_step.state_dict() | {
            "best": self.best.value,
            "first": self.first,
            "verdict": self.verdict,
            "healed": self.healed,
            "healthy": not self.guard.onsets,
            "guard": self.guard.state_dict(),
            "samples_before": self.samples_before,
            "last": self.last,
            "evaluator": self.evaluator.state_dict(),
            PROVENANCE: dict(self.provenance),
        }


def _every(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
