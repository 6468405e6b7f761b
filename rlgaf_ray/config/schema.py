"""The typed config tree: every key a run can be given, its default, its bounds and one line on what it does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlgaf_ray.config.section import Fraction, NonNegative, NonNegativeRate, Pair, Positive, Rate, Section
from rlgaf_ray.config.sweep import SweepSection
from rlgaf_ray.config.task import TaskSection


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
    generator: str = Field(
        "tiny-gpt2", description="a local folder, a hub id, or a model made anew: 'tiny-gpt2', 'seqgan-lstm'"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the stored weights and of the rollout engine"
    )
    trust_remote_code: bool = False


class GeneratorWarmup(Section):
    """Next-token loss: on whole reviews packed into blocks (imdb), else on prompts and their responses."""

    steps: NonNegative = 1500
    batch_size: Positive = 32
    block_tokens: Positive = Field(64, description="imdb: reviews are packed end to end into blocks of this length")
    learning_rate: Rate = 2e-3
    weight_decay: NonNegativeRate = 0.1
    warmup_fraction: Fraction = 0.05
    max_grad_norm: Rate = 1.0


class DiscriminatorWarmup(Section):
    """Binary cross-entropy: demonstrations against those of the unwanted kind, as long as a response."""

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
    stop_at_end_of_text: bool | None = Field(
        None, description="false: end of text is masked, every response has full length; default: false for imdb only"
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
    architecture: Literal["generator", "cnn"] = Field(
        "generator", description="the generator's, with a scalar head; cnn: SeqGAN's, from scratch"
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
    rollout_policy_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="completions come from a moving average of the policy with this rate (SeqGAN: 0.8); 0: from it"
    )


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


class GumbelKLSettings(Section):
    """KL(policy, SFT model) over the whole vocabulary at every response position: a term of the loss."""

    coefficient: NonNegativeRate = Field(
        0.7,
        description="the discriminator's own gradient is strong: at 0.05 perplexity rose eightfold in 20 iterations",
    )
    target: Rate | None = Field(None, description="adaptive coefficient: hold KL per token near this value")
    horizon: Positive = Field(10_000, description="adaptive coefficient: samples over which it moves")


class GumbelSettings(Section):
    mode: Literal["autoregressive", "conditional"] = Field(
        "autoregressive",
        description="autoregressive: the learner samples, each soft token feeds the next; conditional: tokens of the "
        "rollouts in one pass, without the gradient through later tokens",
    )
    temperature_start: Rate = Field(1.0, description="of the relaxation, at the first iteration")
    temperature_end: Rate = Field(0.5, description="at the last one; geometric in between")
    kl: GumbelKLSettings = GumbelKLSettings()


class GeneratorSection(Section):
    algorithm: Literal["reinforce", "ppo", "seqgan", "gumbel"] = "reinforce"
    reinforce: ReinforceSettings = ReinforceSettings()
    seqgan: SeqGANSettings = SeqGANSettings()
    ppo: PPOSettings = PPOSettings()
    gumbel: GumbelSettings = GumbelSettings()
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
    best_metric: str | None = Field(
        None, description="marks the best checkpoint, higher is better; default: eval/gap_closed (imdb), eval/f1"
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

    @model_validator(mode="after")
    def _parts_fit_the_model(self) -> Config:
        lstm, cnn = self.model.generator == "seqgan-lstm", self.discriminator.architecture == "cnn"
        if lstm and self.rollout.engine == "vllm":
            raise ValueError("model.generator=seqgan-lstm is unknown to vLLM: set rollout.engine=transformers")
        if lstm and not cnn:
            raise ValueError("model.generator=seqgan-lstm has no scalar head: set discriminator.architecture=cnn")
        if lstm and self.generator.algorithm == "ppo":
            raise ValueError("model.generator=seqgan-lstm has no critic: set generator.algorithm=seqgan or reinforce")
        if cnn and self.generator.algorithm == "gumbel":
            raise ValueError(
                "generator.algorithm=gumbel needs a discriminator that reads soft tokens: "
                "set discriminator.architecture=generator"
            )
        return self

    @property
    def stop_at_end_of_text(self) -> bool:
        """Continuations of a review have one length; answers end where they end."""
        asked = self.rollout.stop_at_end_of_text
        return self.task.name != "imdb" if asked is None else asked

    @property
    def best_metric(self) -> str:
        return self.evaluation.best_metric or ("eval/gap_closed" if self.task.name == "imdb" else "eval/f1")
