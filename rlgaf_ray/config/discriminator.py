"""The discriminator: architecture, loss, update schedule and regularisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlgaf_ray.config.section import (
    Fraction,
    LearningRateSchedule,
    NonNegative,
    NonNegativeRate,
    Pair,
    Positive,
    Rate,
    Section,
)
from rlgaf_ray.config.task import TaskSection

DiscriminatorLoss = Literal[
    "binary_cross_entropy", "least_squares", "hinge", "positive_unlabelled", "bradley_terry", "contrastive"
]


@dataclass(frozen=True, slots=True)
class LossTraits:
    """Requirements of a loss on its batches; the loss functions are in ``objectives.discriminator.LOSSES``."""

    pairwise: bool = False  # row i of real, fake and contrast belongs to the same prompt
    other_prompts: bool = False  # its contrast rows are the demonstrations paired with other prompts
    clipped: bool = False  # clips a term at zero, depending on its mean over the full batch


LOSS_TRAITS: dict[DiscriminatorLoss, LossTraits] = {
    "positive_unlabelled": LossTraits(clipped=True),
    "bradley_terry": LossTraits(pairwise=True),
    "contrastive": LossTraits(pairwise=True, other_prompts=True),
}
"""Losses not listed here have no special requirements."""


@dataclass(frozen=True, slots=True)
class BatchNeeds:
    """Rows that a discriminator update compares the rollouts with."""

    pairs: bool = False  # the demonstration of each rollout's prompt; else batch_size random demonstrations
    contrast: bool = False  # negatives other than rollouts (discriminator.contrast)
    other_prompts: int = 0  # instead: the demonstrations paired with this many other prompts


DiscriminatorArchitecture = Literal["generator", "cnn", "generative"]


@dataclass(frozen=True, slots=True)
class ArchitectureTraits:
    """Capabilities of an architecture; its factory is in ``training.architectures.DISCRIMINATORS``."""

    lacks: Mapping[str, Any]  # settings that it does not support, with the neutral value that they must have
    transformer: bool = True  # initialised from the SFT model, with its blocks and adapters
    scalar_head: bool = False  # its logit is a sum over tokens, and it accepts soft tokens


ARCHITECTURE_TRAITS: dict[DiscriminatorArchitecture, ArchitectureTraits] = {
    "generator": ArchitectureTraits({}, scalar_head=True),
    "cnn": ArchitectureTraits(
        {"dropout": 0.0, "frozen_layers": 0, "match_lengths": False, "view": "response"}, transformer=False
    ),
    "generative": ArchitectureTraits({"pooling": "mean"}),
}


class UpdateRatioSection(Section):
    """Control of the update rate that keeps the discriminator's held-out accuracy in a band."""

    mode: Literal["fixed", "adaptive"] = Field(
        "fixed",
        description="adaptive: start at updates_per_generator_update, then keep the held-out accuracy in the band",
    )
    band: Pair = Field(
        (0.6, 0.75), description="target band of the held-out accuracy; the controller aims at its middle"
    )
    minimum: Rate = Field(0.02, description="lower bound of the adaptive rate, in updates per generator update")
    maximum: Rate = Field(4.0, description="upper bound of the adaptive rate, in updates per generator update")
    step: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.1, description="largest change of log(rate) per iteration, reached at the edges of the band"
    )

    @model_validator(mode="after")
    def _ordered(self) -> UpdateRatioSection:
        low, high = self.band
        if low >= high:
            raise ValueError(
                f"discriminator.update_ratio.band={[low, high]} is not increasing: give [low, high] with low < high"
            )
        if self.minimum > self.maximum:
            raise ValueError(
                f"discriminator.update_ratio.minimum={self.minimum:g} is above "
                f"discriminator.update_ratio.maximum={self.maximum:g}: lower it, or raise the maximum"
            )
        return self


class DiscriminatorSection(Section):
    """Architecture, loss, regularisation and update ratio of the discriminator."""

    num_workers: Positive = Field(1, description="data-parallel processes for scoring and updates")
    updates_per_generator_update: NonNegativeRate = Field(
        1.0, description="discriminator updates per generator update; 0.2: one in five iterations; 0: frozen"
    )
    update_ratio: UpdateRatioSection = UpdateRatioSection()
    held_out: NonNegative | None = Field(
        None,
        description="number of demonstrations excluded from training to measure held-out accuracy; null: 128 if "
        "update_ratio.mode=adaptive, overfit_gap is set or guard.action is stop or heal, else 0",
    )
    overfit_gap: Fraction | None = Field(
        None,
        description="skip updates while the AUC on training demonstrations exceeds the AUC on held-out ones by more "
        "than this, e.g. 0.15; null: never skip",
    )
    loss: DiscriminatorLoss = Field(
        "binary_cross_entropy",
        description="binary_cross_entropy, least_squares, hinge: real against generated; positive_unlabelled: treats a "
        "share of the rollouts as real; bradley_terry: ranks each rollout below the demonstration of its prompt; "
        "contrastive: scores a demonstration above a rollout for the same prompt and above the same response paired "
        "with other prompts (softmax cross-entropy), for tasks whose prompts determine the response",
    )
    positive_share: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.2, description="loss=positive_unlabelled: assumed share of rollouts that are as good as demonstrations"
    )
    contrastive_prompts: Positive = Field(8, description="loss=contrastive: number of other prompts per demonstration")
    labels: Literal["correct", "shuffled"] = Field(
        "correct",
        description="shuffled: control run in which the real and generated labels of each update are permuted at "
        "random, so that there is nothing to learn",
    )
    architecture: DiscriminatorArchitecture = Field(
        "generator",
        description="generator: the generator's architecture with a scalar head; cnn: SeqGAN's CNN, from scratch; "
        "generative: the SFT model reads a question after the response, and the log-odds of its answer are the score",
    )
    pooling: Literal["mean", "last"] = Field(
        "mean", description="how the hidden states of the response are pooled before the head"
    )
    question: str = Field(
        "\n\nIs this a real answer to the prompt, yes or no?",
        description="architecture=generative: question appended after the response",
    )
    verdicts: Annotated[tuple[str, str], Field(strict=False)] = Field(
        (" yes", " no"), description="architecture=generative: answers that mean real and generated, one token each"
    )
    batch_size: Positive = Field(
        64, description="demonstrations per update; the negatives are all rollouts of the iteration"
    )
    contrast: Literal["labels", "base_model"] = Field(
        "base_model",
        description="source of additional negatives; base_model: samples of the model before SFT, without labels; "
        "labels: unwanted responses of the task (imdb: negative reviews; rows: rejected or other prompts' answers)",
    )
    contrast_samples: Positive = Field(4, description="contrast=base_model: samples per prompt")
    contrast_weight: NonNegativeRate = Field(
        1.0, description="loss weight of the contrast rows, which are labelled fake; 0: no contrast"
    )
    learning_rate: Rate = 1e-3
    learning_rate_schedule: LearningRateSchedule = Field(
        "constant",
        description="linear, cosine: decay to 0 over run.iterations * updates_per_generator_update updates",
    )
    betas: Pair = (0.5, 0.99)
    weight_decay: NonNegativeRate = 0.0
    max_grad_norm: Rate = 1.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="dropout of embeddings, attention and residuals during updates; off during scoring"
    )
    frozen_layers: NonNegative | None = Field(
        None, description="lowest blocks to freeze, with the embeddings; 0: train all; null: four fifths of the blocks"
    )
    replay_share: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of each update's rollouts drawn from a replay buffer; 0: no replay"
    )
    replay_size: Positive = Field(1000, description="capacity of the replay buffer, in rollouts")
    leave_out_liked: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of rollouts with the highest scores that updates leave out of the loss; 0: none"
    )
    match_lengths: bool = Field(
        False, description="truncate the responses of an update to one length distribution, without end of text"
    )
    view: Literal["response", "without_end", "last_tokens"] = Field(
        "response",
        description="part of the response that it reads besides the prompt; response: all; without_end: all but the "
        "end of text; last_tokens: the last view_tokens tokens",
    )
    view_tokens: Positive | None = Field(None, description="view=last_tokens: number of tokens, required")

    @model_validator(mode="after")
    def _schedule_has_an_end(self) -> DiscriminatorSection:
        if self.learning_rate_schedule != "constant" and self.update_ratio.mode == "adaptive":
            raise ValueError(
                f"discriminator.learning_rate_schedule={self.learning_rate_schedule} needs a known number of updates, "
                "which discriminator.update_ratio.mode=adaptive varies: set "
                "discriminator.learning_rate_schedule=constant, or discriminator.update_ratio.mode=fixed"
            )
        return self

    @model_validator(mode="after")
    def _overfitting_is_measured(self) -> DiscriminatorSection:
        if self.overfit_gap is not None and self.held_out == 0:
            raise ValueError(
                "discriminator.overfit_gap needs held-out demonstrations, but discriminator.held_out=0: set "
                "discriminator.held_out=128, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _stabilisers_fit(self) -> DiscriminatorSection:
        if self.loss_traits.other_prompts and self.replay_share > 0:
            raise ValueError(
                f"discriminator.loss={self.loss} needs all responses from the same iteration: set "
                "discriminator.replay_share=0, or discriminator.loss=bradley_terry"
            )
        for name, without in self.traits.lacks.items():
            if getattr(self, name) not in (without, None):
                raise ValueError(
                    f"discriminator.architecture={self.architecture} does not support discriminator.{name}: set "
                    f"discriminator.{name}={str(without).lower()}, or discriminator.architecture=generator"
                )
        return self

    @model_validator(mode="after")
    def _view_has_its_tokens(self) -> DiscriminatorSection:
        view, tokens = self.view, self.view_tokens
        if view == "last_tokens" and tokens is None:
            raise ValueError(
                "discriminator.view=last_tokens needs discriminator.view_tokens: set it to the number of tokens"
            )
        if view != "last_tokens" and tokens is not None:
            raise ValueError(
                f"discriminator.view_tokens={tokens} has no effect with discriminator.view={view}: remove it, or set "
                "discriminator.view=last_tokens"
            )
        return self

    @model_validator(mode="after")
    def _adaptive_rate_starts_within_its_bounds(self) -> DiscriminatorSection:
        rate, ratio = self.updates_per_generator_update, self.update_ratio
        if ratio.mode != "adaptive":
            return self
        if not ratio.minimum <= rate <= ratio.maximum:
            raise ValueError(
                f"discriminator.updates_per_generator_update={rate:g} is outside the bounds of "
                f"discriminator.update_ratio.mode=adaptive: set it between {ratio.minimum:g} and {ratio.maximum:g} "
                "(discriminator.update_ratio.minimum and maximum)"
            )
        if self.held_out == 0:
            raise ValueError(
                "discriminator.update_ratio.mode=adaptive needs held-out demonstrations, but "
                "discriminator.held_out=0: set discriminator.held_out=128, or remove it"
            )
        return self

    def num_frozen(self, num_blocks: int) -> int:
        """Return the number of frozen blocks of a network with ``num_blocks``."""
        return num_blocks * 4 // 5 if self.frozen_layers is None else self.frozen_layers

    @property
    def traits(self) -> ArchitectureTraits:
        return ARCHITECTURE_TRAITS[self.architecture]

    @property
    def loss_traits(self) -> LossTraits:
        return LOSS_TRAITS.get(self.loss, LossTraits())

    @property
    def needs(self) -> BatchNeeds:
        """Rows that the configured loss compares the rollouts with."""
        traits = self.loss_traits
        return BatchNeeds(
            pairs=traits.pairwise,
            contrast=self.contrast_weight > 0 and not traits.other_prompts,
            other_prompts=self.contrastive_prompts if traits.other_prompts else 0,
        )

    @property
    def contrast_read(self) -> Literal["labels", "base_model"] | None:
        """Source of the contrast rows; None without contrast, or if the loss makes its own from other prompts."""
        return self.contrast if self.needs.contrast else None


def check_view(discriminator: DiscriminatorSection, task: TaskSection) -> None:
    """Raise ``ValueError`` if ``discriminator.view_tokens`` exceeds the response length."""
    tokens = discriminator.view_tokens
    if tokens is not None and tokens > task.response_tokens:
        raise ValueError(
            f"discriminator.view_tokens={tokens} exceeds task.response_tokens={task.response_tokens}: set it to "
            f"{task.response_tokens} or less, or set discriminator.view=response"
        )
