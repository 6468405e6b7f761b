"""Config section of ``rlgaf compare``: methods, replicates, and how they are measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlgaf_ray.config.section import NonNegative, Positive, Rate, Section

MethodName = Literal[
    "sft",
    "contrastive_sft",
    "best_of_4",
    "best_of_16",
    "resampling_16",
    "rejection",
    "dpo",
    "spin",
    "ditto",
    "gad",
    "frozen",
    "zero_reward",
    "rlgaf",
    "verdict",
    "hindsight",
]
BetweenZeroAndOne = Annotated[float, Field(gt=0.0, lt=1.0)]
CORE: tuple[MethodName, ...] = ("sft", "best_of_4", "best_of_16", "rejection", "frozen", "zero_reward", "rlgaf")


class CompareSection(Section):
    """Methods, replicates and temperatures of ``rlgaf compare``."""

    methods: list[MethodName] = Field(list(CORE), min_length=1, description="methods to compare (docs/compare.md)")
    baseline: MethodName = Field("sft", description="method that all others are compared with")
    replicates: Positive = Field(3, description="replicates per method, each with its own demonstrations and seeds")
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
    rejection_rounds: Positive = Field(6, description="rounds of rejection, with as many rollouts in total as rlgaf")
    samples: Positive = Field(4, description="answers per prompt and measurement")
    concurrent: Positive | None = Field(None, description="trials at a time, one thread each; null: one per core")

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
