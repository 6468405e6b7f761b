"""A sweep of Ray Tune: which keys vary and how, what is optimised, and which rule ends trials early."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rlgaf_ray.config.section import Fraction, Positive, Section
from rlgaf_ray.metrics import METRICS, SCORE

KINDS = ("grid", "choice", "uniform", "log_uniform")
METRIC_GROUPS = tuple(dict.fromkeys(metric.owner for name, metric in METRICS.items() if name != SCORE))

Finite = Annotated[float, Field(allow_inf_nan=False)]
Bounds = Annotated[tuple[Finite, Finite], Field(strict=False)]  # a list in YAML


class Domain(Section):
    """The values of one key: exactly one of the four."""

    grid: list[Any] | None = Field(None, description="every one of these")
    choice: list[Any] | None = Field(None, description="one of these by lot")
    uniform: Bounds | None = Field(None, description="between two bounds by lot")
    log_uniform: Bounds | None = Field(None, description="the same on a logarithmic scale")

    @field_validator("uniform", "log_uniform")
    @classmethod
    def _in_order(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        if bounds is not None and bounds[0] >= bounds[1]:
            raise ValueError(f"the lower bound {bounds[0]:g} must be below the upper bound {bounds[1]:g}")
        return bounds

    @field_validator("log_uniform")
    @classmethod
    def _above_zero(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        if bounds is not None and bounds[0] <= 0:
            raise ValueError(f"the lower bound {bounds[0]:g} must be above 0")
        return bounds

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def bounds(self) -> tuple[float, float] | None:
        return self.uniform or self.log_uniform

    @property
    def values(self) -> list[Any]:
        """Those listed; none of a continuous key."""
        return self.grid or self.choice or []


class AshaSettings(Section):
    """Successive halving (Li et al. 2020, arXiv 1810.05934): at each rung the worse part ends."""

    reduction_factor: Annotated[float, Field(gt=1.0, allow_inf_nan=False)] = Field(
        2.0, description="one in so many goes on from a rung, and the next rung lies so much further"
    )


class MedianSettings(Section):
    """A trial ends whose best value is below the median of the others' running means (Golovin et al. 2017)."""

    min_trials: Positive = Field(3, description="others that must have got as far")


class PBTSettings(Section):
    """Population-based training (Jaderberg et al. 2017, arXiv 1711.09846): bad trials go on from good ones' weights."""

    every: Positive = Field(50, description="iterations between decisions")
    mutate: list[str] | None = Field(None, description="keys of the space that change at an exploit; default: all")
    quantile: Annotated[float, Field(gt=0.0, le=0.5)] = Field(0.25, description="share that copies, and is copied")
    resample: Fraction = Field(
        0.25, description="chance of a fresh draw; else times 0.8 or 1.2, or the listed neighbour"
    )


class SweepSection(Section):
    """Read by ``rlgaf tune`` only."""

    space: dict[str, Domain] = Field(
        {}, description="dotted key: {grid | choice: [...]} or {uniform | log_uniform: [a, b]}"
    )
    num_samples: Positive = Field(1, description="draws of the whole space (each over the full grid)")
    metric: str = Field(SCORE, description="what is optimised: sweep/score or any metric that a run logs")
    mode: Literal["max", "min"] = "max"
    scheduler: Literal["none", "asha", "median", "pbt"] = Field("asha", description="which rule ends trials early")
    searcher: Literal["random", "optuna"] = Field("random", description="optuna: the extra 'tune'")
    grace: Positive | None = Field(
        None, description="iterations before a scheduler touches a trial; default: a third of run.iterations"
    )
    max_concurrent: Positive | None = Field(
        None, description="trials at a time; default: one a node on CPUs, else as many as the GPUs hold"
    )
    asha: AshaSettings = AshaSettings()
    median: MedianSettings = MedianSettings()
    pbt: PBTSettings = PBTSettings()

    @field_validator("space", mode="before")
    @classmethod
    def _flat(cls, space: Any) -> Any:
        """Sections may nest, as an override's dots make them: ``sweep.space.generator.learning_rate.grid=[...]``."""
        return _flatten(space, "") if isinstance(space, dict) else space

    @field_validator("metric")
    @classmethod
    def _of_a_known_group(cls, metric: str) -> str:
        if metric != SCORE and metric.partition("/")[0] not in METRIC_GROUPS:
            raise ValueError(
                f"sweep.metric={metric} is none that a run logs: take {SCORE} or one that begins with "
                f"{', '.join(f'{group}/' for group in METRIC_GROUPS)}"
            )
        return metric

    @model_validator(mode="after")
    def _parts_fit(self) -> SweepSection:
        if self.metric == SCORE and self.mode == "min":
            raise ValueError(f"sweep.mode=min asks for the worst run: {SCORE} is better when higher")
        if self.searcher == "optuna":
            if grid := [key for key, domain in self.space.items() if domain.grid is not None]:
                raise ValueError(f"sweep.searcher=optuna draws values itself: make grid of {grid[0]} a choice")
            if self.scheduler == "pbt":
                raise ValueError("sweep.scheduler=pbt chooses new values itself: set sweep.searcher=random")
        if absent := [key for key in self.pbt.mutate or [] if key not in self.space]:
            raise ValueError(f"sweep.pbt.mutate names {absent[0]}, which is not in sweep.space")
        return self


def _flatten(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value and not value.keys() & set(KINDS):
            flat |= _flatten(value, f"{key}.")
        elif isinstance(value, Domain) or _names_one_kind(value):
            flat[key] = value
        else:
            raise ValueError(
                f"sweep.space.{key} must have one of grid: [...], choice: [...], uniform: [low, high], "
                "log_uniform: [low, high]"
            )
    return flat


def _names_one_kind(value: Any) -> bool:
    if not isinstance(value, dict) or not value.keys() <= set(KINDS):
        return False
    given = [content for content in value.values() if content is not None]
    return len(given) == 1 and given[0] != []
