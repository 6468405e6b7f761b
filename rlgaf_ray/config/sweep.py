"""A sweep with Ray Tune: search space, metric, scheduler and searcher."""

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
    """The values of one key; exactly one of the four fields is set."""

    grid: list[Any] | None = Field(None, description="try every value")
    choice: list[Any] | None = Field(None, description="sample one of these values")
    uniform: Bounds | None = Field(None, description="sample between two bounds")
    log_uniform: Bounds | None = Field(None, description="sample between two bounds on a logarithmic scale")

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
        """The listed values; empty for a continuous key."""
        return self.grid or self.choice or []


class AshaSettings(Section):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934): stops the worse trials at each rung."""

    reduction_factor: Annotated[float, Field(gt=1.0, allow_inf_nan=False)] = Field(
        2.0, description="one in this many trials passes a rung, and the next rung is this many times later"
    )


class MedianSettings(Section):
    """Median stopping (Golovin et al. 2017): stops a trial whose best value is below the median of running means."""

    min_trials: Positive = Field(3, description="number of other trials that must have reached the same iteration")


class PBTSettings(Section):
    """Population-based training (Jaderberg et al. 2017, arXiv 1711.09846): bad trials copy weights of good ones."""

    every: Positive = Field(50, description="iterations between exploit decisions")
    mutate: list[str] | None = Field(None, description="keys of the space to perturb at an exploit; null: all")
    quantile: Annotated[float, Field(gt=0.0, le=0.5)] = Field(
        0.25, description="share of worst trials that copy, and of best trials that are copied"
    )
    resample: Fraction = Field(
        0.25, description="probability of resampling a value; else x 0.8 or 1.2, or the neighbouring listed value"
    )


class SweepSection(Section):
    """Settings of ``rlgaf tune``; other commands ignore them."""

    space: dict[str, Domain] = Field(
        {}, description="search space by dotted key: {grid | choice: [...]} or {uniform | log_uniform: [a, b]}"
    )
    num_samples: Positive = Field(1, description="samples of the space, each crossed with the full grid")
    metric: str = Field(SCORE, description="metric to optimise: sweep/score or any metric of a run")
    mode: Literal["max", "min"] = "max"
    scheduler: Literal["none", "asha", "median", "pbt"] = Field(
        "asha", description="rule that stops or perturbs trials early"
    )
    searcher: Literal["random", "optuna"] = Field("random", description="optuna: TPE, needs the extra 'tune'")
    grace: Positive | None = Field(
        None, description="iterations before the scheduler may act on a trial; null: a third of run.iterations"
    )
    max_concurrent: Positive | None = Field(
        None, description="concurrent trials; null: one per node on CPU, else as many as fit the GPUs"
    )
    asha: AshaSettings = AshaSettings()
    median: MedianSettings = MedianSettings()
    pbt: PBTSettings = PBTSettings()

    @field_validator("space", mode="before")
    @classmethod
    def _flat(cls, space: Any) -> Any:
        """Flatten nested sections, as made by overrides: ``sweep.space.generator.learning_rate.grid=[...]``."""
        return _flatten(space, "") if isinstance(space, dict) else space

    @field_validator("metric")
    @classmethod
    def _of_a_known_group(cls, metric: str) -> str:
        if metric != SCORE and metric.partition("/")[0] not in METRIC_GROUPS:
            raise ValueError(
                f"sweep.metric={metric} is not a metric of a run: use {SCORE} or one that starts with "
                f"{', '.join(f'{group}/' for group in METRIC_GROUPS)}"
            )
        return metric

    @model_validator(mode="after")
    def _parts_fit(self) -> SweepSection:
        if self.metric == SCORE and self.mode == "min":
            raise ValueError(
                f"sweep.mode=min would select the worst run, since a higher {SCORE} is better: set sweep.mode=max"
            )
        if self.searcher == "optuna":
            if grid := [key for key, domain in self.space.items() if domain.grid is not None]:
                raise ValueError(f"sweep.searcher=optuna does not support grid: use choice for {grid[0]}")
            if self.scheduler == "pbt":
                raise ValueError(
                    "sweep.scheduler=pbt does not support sweep.searcher=optuna: set sweep.searcher=random"
                )
        if absent := [key for key in self.pbt.mutate or [] if key not in self.space]:
            raise ValueError(f"sweep.pbt.mutate: {absent[0]} is not in sweep.space: add it there, or remove it")
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
                f"sweep.space.{key} must have exactly one of grid: [...], choice: [...], uniform: [low, high], "
                "log_uniform: [low, high]"
            )
    return flat


def _names_one_kind(value: Any) -> bool:
    if not isinstance(value, dict) or not value.keys() <= set(KINDS):
        return False
    given = [content for content in value.values() if content is not None]
    return len(given) == 1 and given[0] != []
