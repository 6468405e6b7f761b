"""Base class of the sections, and the bounded types that their fields share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeRate = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Pair = Annotated[tuple[Fraction, Fraction], Field(strict=False)]  # a list in YAML
LearningRateSchedule = Literal["constant", "linear", "cosine"]


class Section(BaseModel):
    """Base of all sections: rejects unknown keys and values of another type, also on assignment."""

    model_config = ConfigDict(
        extra="forbid", strict=True, validate_assignment=True, validate_default=True, protected_namespaces=()
    )
