"""The generator's model and adapters, and the settings that a model rules out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from rlgaf_ray.config.discriminator import DiscriminatorSection
from rlgaf_ray.config.engines import engines_with
from rlgaf_ray.config.generator import GeneratorSection
from rlgaf_ray.config.learner import LearnerSection
from rlgaf_ray.config.lora import LoraSettings
from rlgaf_ray.config.presets import shipped_model
from rlgaf_ray.config.rollout import RolloutSection
from rlgaf_ray.config.section import Section

FILM_REVIEWS = "film-reviews"
FROM_SCRATCH = ("tiny-gpt2", "seqgan-lstm")
"""Models that are trained from scratch, with a tokenizer trained on the task's text."""


class ModelSection(Section):
    """The base model, its storage type and its adapters."""

    generator: str = Field(
        FILM_REVIEWS,
        description="local folder or hub id of a causal LM, a folder among the presets, the built-in 'film-reviews', "
        "or a model trained from scratch: 'tiny-gpt2', 'seqgan-lstm'",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of the stored weights and of the rollout engine; bfloat16 for large models"
    )
    trust_remote_code: bool = Field(False, description="run Python code from the model's folder or repository")
    allow_pickle: bool = Field(
        False, description="load pytorch_model.bin if there are no safetensors; unpickling can run arbitrary code"
    )
    lora: LoraSettings = LoraSettings()

    @field_validator("generator")
    @classmethod
    def _found_from_any_directory(cls, generator: str) -> str:
        return shipped_model(generator)

    @property
    def risks(self) -> list[str]:
        """Warnings to print before the model is loaded."""
        warnings = []
        if self.trust_remote_code:
            warnings.append(f"model.trust_remote_code=true: Python code of {self.generator} will run")
        if self.allow_pickle:
            warnings.append(f"model.allow_pickle=true: {self.generator} may be unpickled, which can run arbitrary code")
        return warnings


def check_model(
    model: ModelSection, rollout: RolloutSection, discriminator: DiscriminatorSection, generator: GeneratorSection
) -> None:
    """Raise ``ValueError`` for settings that need a transformer if the generator is SeqGAN's LSTM."""
    if model.generator != "seqgan-lstm":
        return
    if not rollout.traits.any_architecture:
        raise ValueError(
            f"model.generator=seqgan-lstm is not supported by rollout.engine={rollout.engine}: "
            f"set rollout.engine={engines_with('any_architecture')}"
        )
    if discriminator.traits.transformer:
        raise ValueError(
            f"discriminator.architecture={discriminator.architecture} needs a transformer, and "
            "model.generator=seqgan-lstm is none: set discriminator.architecture=cnn"
        )
    if generator.active.trains_critic:
        raise ValueError("model.generator=seqgan-lstm cannot be a critic: set generator.algorithm=seqgan or reinforce")


def check_adapters(
    model: ModelSection, learner: LearnerSection, generator: GeneratorSection, discriminator: DiscriminatorSection
) -> None:
    """Raise ``ValueError`` for settings that are incompatible with the frozen weights of ``model.lora``."""
    if model.lora.rank == 0:
        return
    if learner.strategy != "ddp":
        raise ValueError(
            f"learner.strategy={learner.strategy} does not support model.lora.rank={model.lora.rank}: set "
            "learner.strategy=ddp, or model.lora.rank=0"
        )
    missing = {
        "generator.average_decay=0": generator.average_decay == 0,
        "generator.seqgan.rollout_policy_rate=0": generator.seqgan.rollout_policy_rate == 0,
        "discriminator.architecture=generator": discriminator.traits.transformer,
        "model.generator to a transformer": model.generator != "seqgan-lstm",
    }
    for key in (key for key, met in missing.items() if not met):
        raise ValueError(f"model.lora.rank={model.lora.rank} trains adapters over frozen weights: set {key}")
