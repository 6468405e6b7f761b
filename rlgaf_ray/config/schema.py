"""The typed config tree: its sections, the rules between them, and values derived from them.

A rule across sections is in the file of the section it is about, and takes the sections that it reads.
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from rlgaf_ray.config.cluster import ClusterSection
from rlgaf_ray.config.compare import CompareSection
from rlgaf_ray.config.discriminator import DiscriminatorSection, check_view
from rlgaf_ray.config.generator import GeneratorSection
from rlgaf_ray.config.guard import GuardSection, check_rollback
from rlgaf_ray.config.learner import LearnerSection, check_workers
from rlgaf_ray.config.model import FROM_SCRATCH, ModelSection, check_adapters, check_model
from rlgaf_ray.config.records import CheckpointSection, EvaluationSection, TrackingSection
from rlgaf_ray.config.reward import RewardSection
from rlgaf_ray.config.rollout import RolloutSection, ScheduleSection, WeightsSection, check_engines
from rlgaf_ray.config.run import RunSection, check_storage
from rlgaf_ray.config.section import Section
from rlgaf_ray.config.sweep import SweepSection
from rlgaf_ray.config.task import TaskSection
from rlgaf_ray.config.warmup import GeneratorWarmup, WarmupSection, check_warmups

ASYNC_IMPORTANCE_CAP = 2.0


class Config(Section):
    """The resolved configuration of a run, one section for each component."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    task: TaskSection = TaskSection()
    warmup: WarmupSection = WarmupSection()
    rollout: RolloutSection = RolloutSection()
    discriminator: DiscriminatorSection = DiscriminatorSection()
    reward: RewardSection = RewardSection()
    generator: GeneratorSection = GeneratorSection()
    learner: LearnerSection = LearnerSection()
    weights: WeightsSection = WeightsSection()
    schedule: ScheduleSection = ScheduleSection()
    guard: GuardSection = GuardSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()
    cluster: ClusterSection = ClusterSection()
    sweep: SweepSection = SweepSection()
    compare: CompareSection = CompareSection()

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        """Check the rules between sections; the first violation is the error that the user sees."""
        check_model(self.model, self.rollout, self.discriminator, self.generator)
        self.generator.check(self)
        check_storage(self.run, self.cluster)
        check_workers(self.learner, self.discriminator, self.rollout)
        check_engines(
            self.rollout, self.weights, self.schedule, self.cluster, average_decay=self.generator.average_decay
        )
        check_adapters(self.model, self.learner, self.generator, self.discriminator)
        check_view(self.discriminator, self.task)
        check_warmups(self.warmup, self.discriminator)
        check_rollback(self.guard, self.checkpoint)
        return self

    @property
    def base_warmup(self) -> GeneratorWarmup:
        """``warmup.generator`` with the default of ``steps`` resolved."""
        settings = self.warmup.generator
        default = 1500 if self.model.generator in FROM_SCRATCH else 0
        return settings if settings.steps is not None else settings.model_copy(update={"steps": default})

    @property
    def needs_base_model(self) -> bool:
        """Whether the learner holds the model before SFT besides the SFT model; without SFT they are the same."""
        used = self.generator.active.kl.reference == "base" or self.reward.base_logprob > 0
        return used and bool(self.warmup.sft.steps)

    @property
    def discriminator_warmup_updates(self) -> int:
        """Number of discriminator updates on rollouts before the first iteration."""
        return self.warmup.discriminator.steps if self.warmup.discriminator.type == "rollouts" else 0

    @property
    def discriminator_warmup_rollouts(self) -> int:
        """Number of rollouts per such update, rounded down to full groups."""
        group = self.rollout.samples_per_prompt
        asked = self.warmup.discriminator.rollouts or self.rollout.batch_size
        return max(1, asked // group) * group

    @property
    def labels_read(self) -> list[str]:
        """Stages that read labelled negatives, which SFT on the demonstrations does not see."""
        warmup = self.warmup.discriminator
        places = {
            "the discriminator's warm-up": warmup.type == "labels" and warmup.steps > 0,
            "the discriminator's contrast": self.discriminator.contrast_read == "labels",
            "the generator's updates": self.generator.active.text == "pairs",
        }
        return [place for place, reads in places.items() if reads]

    @property
    def max_staleness(self) -> int:
        """Largest number of policy versions that a rollout may lag behind the learner; 0 in sync mode."""
        return self.schedule.max_staleness if self.schedule.mode == "async" else 0

    @property
    def importance_weight_cap(self) -> float | None:
        """Cap of the importance weights; by default set in async mode, to correct stale rollouts, else None."""
        if self.generator.importance_weight_mode == "none":
            return None
        return self.generator.importance_weight_cap or (ASYNC_IMPORTANCE_CAP if self.max_staleness else None)

    @property
    def held_out_demonstrations(self) -> int:
        """Number of demonstrations held out from the discriminator; by default as its controls and the guard need."""
        if self.discriminator.held_out is not None:
            return self.discriminator.held_out
        measured = self.discriminator.update_ratio.mode == "adaptive" or self.discriminator.overfit_gap is not None
        return 128 if measured or self.guard.action != "warn" else 0

    @property
    def stop_at_end_of_text(self) -> bool:
        """Whether end of text is sampled; by default unless the task's responses have fixed length."""
        asked = self.rollout.stop_at_end_of_text
        return not self.task.traits.full_length if asked is None else asked

    @property
    def best_metric(self) -> str:
        """Metric that selects the best checkpoint."""
        return self.evaluation.best_metric or self.quality

    @property
    def quality(self) -> str:
        """Quality metric of the task, which scores sweeps."""
        own = self.evaluation.best_metric if self.task.traits.own_quality else None
        return own or self.task.traits.quality
