"""Config section of ``rlgaf compare``: methods, replicates, and how they are measured."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from rlgaf_ray.config.compose import leaves
from rlgaf_ray.config.section import NonNegative, Positive, Rate, Section

BuiltInMethod = Literal[
    "base",
    "sft",
    "contrastive_sft",
    "best_of_4",
    "best_of_16",
    "resampling_4",
    "resampling_16",
    "rejection",
    "dpo",
    "spin",
    "ditto",
    "dpo_labels",
    "label_token",
    "gad",
    "frozen",
    "reward_model",
    "zero_reward",
    "rlgaf",
    "posterior",
    "best_of_16_posterior",
    "verdict",
    "hindsight",
]
BetweenZeroAndOne = Annotated[float, Field(gt=0.0, lt=1.0)]
MethodName = str  # a built-in method, or a name of compare.variants
VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")  # part of a file name
CORE: tuple[BuiltInMethod, ...] = (
    "base",
    "sft",
    "best_of_4",
    "best_of_16",
    "rejection",
    "frozen",
    "zero_reward",
    "rlgaf",
)


class Variant(Section):
    """A method with other settings."""

    method: BuiltInMethod = Field("rlgaf", description="built-in method that is changed")
    keys: dict[str, Any] = Field({}, description="values by dotted key, e.g. {generator.algorithm: ppo}")

    @field_validator("keys", mode="before")
    @classmethod
    def _flat(cls, keys: Any) -> Any:
        """Flatten nested sections, as made by overrides: ``compare.variants.ppo.keys.generator.algorithm=ppo``."""
        return {".".join(key): value for key, value in leaves(keys)} if isinstance(keys, dict) and keys else keys


class CompareSection(Section):
    """Methods, replicates and temperatures of ``rlgaf compare``."""

    methods: list[MethodName] = Field(list(CORE), min_length=1, description="methods to compare (docs/compare.md)")
    variants: dict[str, Variant] = Field(
        {}, description="further methods, by name: a built-in method with other keys; listed in methods like the others"
    )
    baseline: MethodName = Field("sft", description="method that all others are compared with")
    replicates: Positive = Field(
        3,
        description="replicates per method, each with its own seed; own demonstrations only with "
        "task.max_demonstrations or task.draw_share < 1",
    )
    first_replicate: NonNegative = Field(0, description="run.seed and task.draw_seed of the first replicate")
    temperatures: list[Rate] = Field(
        [1.0, 0.8, 0.6, 0.4], min_length=1, description="sampling temperatures to measure at"
    )
    top_p: list[BetweenZeroAndOne] = Field([], description="further measurements with top-p, at temperature 1")
    min_p: list[BetweenZeroAndOne] = Field(
        [],
        description="further measurements with min-p, at temperature 1: tokens with less than this share of the most "
        "probable token's probability are not sampled",
    )
    sft_steps: list[Positive] = Field(
        [],
        description="SFT step counts that the supervised methods try; the best on the validation prompts is kept; "
        "empty: warmup.sft.steps",
    )
    guidance: list[Rate] = Field(
        [1.0, 1.5, 2.0, 3.0],
        min_length=1,
        description="weights of the guidance that label_token tries; the best on the validation prompts is kept",
    )
    posterior_prompts: Positive | None = Field(
        None, description="other prompts in the reward of posterior; null: warmup.sft.contrastive_prompts"
    )
    rejection_rounds: Positive = Field(6, description="rounds of rejection, with as many rollouts in total as rlgaf")
    num_prompts: Positive | None = Field(None, description="measure the first prompts of each part only; null: all")
    samples: Positive = Field(4, description="answers per prompt and measurement")
    concurrent: Positive | None = Field(None, description="trials at a time, one thread each; null: one per core")

    @model_validator(mode="after")
    def _the_methods_exist(self) -> CompareSection:
        built_in = get_args(BuiltInMethod)
        for name in self.variants:
            if name in built_in:
                raise ValueError(f"compare.variants.{name} has the name of a built-in method: choose another name")
            if not VARIANT_NAME.fullmatch(name):
                raise ValueError(
                    f"compare.variants.{name!r} is part of a file name: use letters, digits, dots and underscores"
                )
        for name in self.methods:
            if name not in built_in and name not in self.variants:
                raise ValueError(
                    f"compare.methods has no method {name!r}: choose from {', '.join((*built_in, *self.variants))}, "
                    "or define it in compare.variants"
                )
        return self

    @model_validator(mode="after")
    def _the_baseline_is_compared(self) -> CompareSection:
        if self.baseline not in self.methods:
            raise ValueError(f"compare.baseline={self.baseline} is not in compare.methods: add it, or choose another")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("compare.methods names a method twice")
        return self

    @property
    def numbers(self) -> range:
        """Numbers of the replicates, used as their seeds."""
        return range(self.first_replicate, self.first_replicate + self.replicates)
