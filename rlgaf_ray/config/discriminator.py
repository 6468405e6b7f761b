"""The discriminator's update: how often, by which loss, and what steadies it."""

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
    """What a loss asks of batches and settings; its function is in ``objectives.discriminator.LOSSES``."""

    pairwise: bool = False  # row i of every set answers the same prompt
    other_prompts: bool = False  # its contrast rows are the demonstrations under other prompts
    clipped: bool = False  # one of its terms is clipped at zero, by the mean over the whole batch


LOSS_TRAITS: dict[DiscriminatorLoss, LossTraits] = {
    "positive_unlabelled": LossTraits(clipped=True),
    "bradley_terry": LossTraits(pairwise=True),
    "contrastive": LossTraits(pairwise=True, other_prompts=True),
}
"""Losses that are not listed have no traits."""


@dataclass(frozen=True, slots=True)
class BatchNeeds:
    """The rows that a discriminator's update compares the rollouts with."""

    pairs: bool = False  # the demonstration of each rollout's prompt; else batch_size demonstrations of any prompts
    contrast: bool = False  # rows of the unwanted kind
    other_prompts: int = 0  # in place of them: the demonstrations under so many other prompts


DiscriminatorArchitecture = Literal["generator", "cnn", "generative"]


@dataclass(frozen=True, slots=True)
class ArchitectureTraits:
    """What an architecture can do; how it is made is in ``training.architectures.DISCRIMINATORS``."""

    lacks: Mapping[str, Any]  # settings that it cannot follow, and their value without it
    transformer: bool = True  # it starts from the SFT model, whose adapters and blocks it has
    scalar_head: bool = False  # its logit is a sum over tokens, and it reads soft ones


ARCHITECTURE_TRAITS: dict[DiscriminatorArchitecture, ArchitectureTraits] = {
    "generator": ArchitectureTraits({}, scalar_head=True),
    "cnn": ArchitectureTraits(
        {"dropout": 0.0, "frozen_layers": 0, "match_lengths": False, "view": "response"}, transformer=False
    ),
    "generative": ArchitectureTraits({"pooling": "mean"}),
}


class UpdateRatioSection(Section):
    """Adaptive: the rate is moved so that the discriminator's held-out accuracy stays in a band."""

    mode: Literal["fixed", "adaptive"] = Field("fixed", description="adaptive starts at updates_per_generator_update")
    band: Pair = Field((0.6, 0.75), description="of the held-out accuracy; its middle is aimed at")
    minimum: Rate = Field(0.02, description="updates per generator update, never fewer")
    maximum: Rate = Field(4.0, description="never more: what is above it costs more than it teaches")
    step: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.1, description="largest change of the rate's logarithm an iteration; it is made at the band's edges"
    )

    @model_validator(mode="after")
    def _ordered(self) -> UpdateRatioSection:
        low, high = self.band
        if low >= high:
            raise ValueError(f"discriminator.update_ratio.band={[low, high]} must rise")
        if self.minimum > self.maximum:
            raise ValueError(
                f"discriminator.update_ratio.minimum={self.minimum:g} lies above "
                f"discriminator.update_ratio.maximum={self.maximum:g}"
            )
        return self


class DiscriminatorSection(Section):
    """Architecture, loss, regularization and update ratio of the discriminator."""

    num_workers: Positive = Field(1, description="processes that share its scoring and each of its updates")
    updates_per_generator_update: NonNegativeRate = Field(
        1.0, description="0.2: once every five generator updates; 2: twice each; 0: frozen"
    )
    update_ratio: UpdateRatioSection = UpdateRatioSection()
    held_out: NonNegative | None = Field(
        None,
        description="demonstrations that it never trains on, for its held-out accuracy; default: 128 where the update "
        "ratio is adaptive, overfit_gap is set or the guard stops or heals, else 0",
    )
    overfit_gap: Fraction | None = Field(
        None,
        description="an iteration's updates are skipped while AUC on demonstrations it trains on exceeds that on "
        "held-out ones by more; null: off",
    )
    loss: DiscriminatorLoss = Field(
        "binary_cross_entropy",
        description="positive_unlabelled counts a share of the rollouts as real; bradley_terry ranks each rollout "
        "below the demonstration of its prompt; contrastive picks the "
        "demonstration among its rollout and itself under other prompts, where prompts carry meaning",
    )
    positive_share: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.2, description="positive_unlabelled: share of the rollouts that are as good as demonstrations"
    )
    contrastive_prompts: Positive = Field(8, description="contrastive: other prompts that a demonstration is put under")
    labels: Literal["correct", "shuffled"] = Field(
        "correct",
        description="shuffled: a control in which it learns nothing but noise; the texts of each update are divided at "
        "random into real and generated ones",
    )
    architecture: DiscriminatorArchitecture = Field(
        "generator",
        description="the generator's, with a scalar head; cnn: SeqGAN's, from scratch; generative: the SFT model, "
        "asked a question after the response, scores by the log-odds of its answer",
    )
    pooling: Literal["mean", "last"] = Field("mean", description="over the response's hidden states")
    question: str = Field(
        "\n\nIs this a real answer to the prompt, yes or no?", description="generative: read after prompt and response"
    )
    verdicts: Annotated[tuple[str, str], Field(strict=False)] = Field(
        (" yes", " no"), description="generative: its answers for real and for generated, one token each"
    )
    batch_size: Positive = Field(64, description="demonstrations an update; fakes are the iteration's rollouts")
    contrast: Literal["labels", "base_model"] = Field(
        "base_model",
        description="labels: answers of the unwanted kind (for prompts and responses: other responses); base_model: "
        "samples of the model before SFT, which need no label",
    )
    contrast_samples: Positive = Field(4, description="base_model: samples of each demonstration's prompt")
    contrast_weight: NonNegativeRate = Field(1.0, description="weight of the contrast, labelled 0; 0: off")
    learning_rate: Rate = 1e-3
    learning_rate_schedule: LearningRateSchedule = Field(
        "constant",
        description="linear and cosine end at 0 after run.iterations * updates_per_generator_update updates",
    )
    betas: Pair = (0.5, 0.99)
    weight_decay: NonNegativeRate = 0.0
    max_grad_norm: Rate = 1.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="of embeddings, attention and residuals below the head, on its updates; off when it scores"
    )
    frozen_layers: NonNegative | None = Field(
        None,
        description="so many of the lowest blocks, and the embeddings, stay as they were; 0: all learn; null: four "
        "fifths of the blocks",
    )
    replay_share: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of each update's rollouts that is drawn from past ones; 0: off"
    )
    replay_size: Positive = Field(1000, description="past rollouts that are kept")
    leave_out_liked: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of an update's rollouts, those of the highest scores, that its loss leaves out; 0: none"
    )
    match_lengths: bool = Field(
        False, description="responses of an update are cut to one distribution of lengths, and read without their end"
    )

    view: Literal["response", "without_end", "last_tokens"] = Field(
        "response",
        description="what it reads of a response, in training and in scoring: all; all but its end of text; its last "
        "view_tokens tokens. The prompt is read in any case",
    )
    view_tokens: Positive | None = Field(None, description="of view=last_tokens, which needs it")

    @model_validator(mode="after")
    def _schedule_has_an_end(self) -> DiscriminatorSection:
        if self.learning_rate_schedule != "constant" and self.update_ratio.mode == "adaptive":
            raise ValueError(
                f"discriminator.learning_rate_schedule={self.learning_rate_schedule} needs a known number of updates, "
                "which discriminator.update_ratio.mode=adaptive changes: set one of them to constant or fixed"
            )
        return self

    @model_validator(mode="after")
    def _overfitting_is_measured(self) -> DiscriminatorSection:
        if self.overfit_gap is not None and self.held_out == 0:
            raise ValueError(
                "discriminator.overfit_gap compares with held-out demonstrations, and discriminator.held_out=0 keeps "
                "none: raise it, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _stabilisers_fit(self) -> DiscriminatorSection:
        if self.loss_traits.other_prompts and self.replay_share > 0:
            raise ValueError(
                f"discriminator.loss={self.loss} compares the answers to the prompts of one iteration: "
                "set discriminator.replay_share=0, or discriminator.loss=bradley_terry"
            )
        for name, without in self.traits.lacks.items():
            if getattr(self, name) not in (without, None):
                raise ValueError(
                    f"discriminator.architecture={self.architecture} has no {name}: set "
                    f"discriminator.{name}={str(without).lower()}, or discriminator.architecture=generator"
                )
        return self

    @model_validator(mode="after")
    def _view_has_its_tokens(self) -> DiscriminatorSection:
        view, tokens = self.view, self.view_tokens
        if view == "last_tokens" and tokens is None:
            raise ValueError("discriminator.view=last_tokens needs their number: set discriminator.view_tokens")
        if view != "last_tokens" and tokens is not None:
            raise ValueError(
                f"discriminator.view_tokens={tokens} is read only with discriminator.view=last_tokens, not with "
                f"discriminator.view={view}: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _adaptive_rate_starts_within_its_bounds(self) -> DiscriminatorSection:
        rate, ratio = self.updates_per_generator_update, self.update_ratio
        if ratio.mode != "adaptive":
            return self
        if not ratio.minimum <= rate <= ratio.maximum:
            raise ValueError(
                f"discriminator.updates_per_generator_update={rate:g} is where "
                "discriminator.update_ratio.mode=adaptive starts: it must lie between "
                f"discriminator.update_ratio.minimum={ratio.minimum:g} and maximum={ratio.maximum:g}"
            )
        if self.held_out == 0:
            raise ValueError(
                "discriminator.update_ratio.mode=adaptive measures held-out demonstrations, and "
                "discriminator.held_out=0 keeps none: raise it, or leave it out"
            )
        return self

    def num_frozen(self, num_blocks: int) -> int:
        """How many of the blocks do not learn."""
        return num_blocks * 4 // 5 if self.frozen_layers is None else self.frozen_layers

    @property
    def traits(self) -> ArchitectureTraits:
        return ARCHITECTURE_TRAITS[self.architecture]

    @property
    def loss_traits(self) -> LossTraits:
        return LOSS_TRAITS.get(self.loss, LossTraits())

    @property
    def needs(self) -> BatchNeeds:
        """The rows that the configured loss compares the rollouts with."""
        traits = self.loss_traits
        return BatchNeeds(
            pairs=traits.pairwise,
            contrast=self.contrast_weight > 0 and not traits.other_prompts,
            other_prompts=self.contrastive_prompts if traits.other_prompts else 0,
        )

    @property
    def contrast_read(self) -> Literal["labels", "base_model"] | None:
        """The source of its contrast rows; None where it has none, or takes demonstrations under other prompts."""
        return self.contrast if self.needs.contrast else None


def check_view(discriminator: DiscriminatorSection, task: TaskSection) -> None:
    """Raise ``ValueError`` for a ``discriminator.view`` of more tokens than a response has."""
    tokens = discriminator.view_tokens
    if tokens is not None and tokens > task.response_tokens:
        raise ValueError(
            f"discriminator.view_tokens={tokens} is more than task.response_tokens={task.response_tokens}: "
            "lower it, or set discriminator.view=response"
        )
