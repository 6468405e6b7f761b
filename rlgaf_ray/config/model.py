"""The generator's model, its adapters, and what a model rules out elsewhere."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlgaf_ray.config.discriminator import DiscriminatorSection
from rlgaf_ray.config.engines import engines_with
from rlgaf_ray.config.generator import GeneratorSection
from rlgaf_ray.config.learner import LearnerSection
from rlgaf_ray.config.lora import LoraSettings
from rlgaf_ray.config.rollout import RolloutSection
from rlgaf_ray.config.section import Section

FILM_REVIEWS = "film-reviews"
FROM_SCRATCH = ("tiny-gpt2", "seqgan-lstm")
"""Names of models that are trained from nothing, with a tokenizer of the task's own text."""


class ModelSection(Section):
    """The base model, its storage type and its adapters."""

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


def check_model(
    model: ModelSection, rollout: RolloutSection, discriminator: DiscriminatorSection, generator: GeneratorSection
) -> None:
    """Raise ``ValueError`` for what SeqGAN's LSTM, which is no transformer, is asked for."""
    if model.generator != "seqgan-lstm":
        return
    if not rollout.traits.any_architecture:
        raise ValueError(
            f"model.generator=seqgan-lstm is unknown to rollout.engine={rollout.engine}: "
            f"set rollout.engine={engines_with('any_architecture')}"
        )
    if discriminator.traits.transformer:
        raise ValueError(
            "model.generator=seqgan-lstm is no transformer, and discriminator.architecture="
            f"{discriminator.architecture} is made of one: set discriminator.architecture=cnn"
        )
    if generator.active.trains_critic:
        raise ValueError("model.generator=seqgan-lstm has no critic: set generator.algorithm=seqgan or reinforce")


def check_adapters(
    model: ModelSection, learner: LearnerSection, generator: GeneratorSection, discriminator: DiscriminatorSection
) -> None:
    """Raise ``ValueError`` for what needs weights that ``model.lora`` freezes, or a second copy of them."""
    if model.lora.rank == 0:
        return
    missing = {
        "learner.strategy=ddp": learner.strategy == "ddp",
        "generator.average_decay=0": generator.average_decay == 0,
        "generator.seqgan.rollout_policy_rate=0": generator.seqgan.rollout_policy_rate == 0,
        "discriminator.architecture=generator": discriminator.traits.transformer,
        "a model.generator that is a transformer": model.generator != "seqgan-lstm",
    }
    for key in (key for key, met in missing.items() if not met):
        raise ValueError(f"model.lora.rank={model.lora.rank} trains adapters of frozen networks: set {key}")
