"""Sampling settings with which a comparison measures each method: temperatures, and top-p or min-p at temperature 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from rlgaf_ray.config.compare import CompareSection


@dataclass(frozen=True, slots=True)
class Decoding:
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def truncated(self) -> bool:
        return self.top_p < 1 or self.min_p > 0

    @property
    def changes(self) -> dict[str, Any]:
        """Fields of ``SamplingSettings`` to override. Without truncation here, the config's own applies."""
        truncation = {"top_p": self.top_p} if self.top_p < 1 else {"min_p": self.min_p} if self.min_p > 0 else {}
        return {"temperature": self.temperature, **truncation}

    def __str__(self) -> str:
        if self.top_p < 1:
            return f"top-p {self.top_p:g}"
        return f"min-p {self.min_p:g}" if self.min_p > 0 else f"T {self.temperature:g}"


def decodings(settings: CompareSection) -> list[Decoding]:
    """Return all decodings that a method is measured with."""
    return [
        *(Decoding(temperature) for temperature in settings.temperatures),
        *(Decoding(top_p=top_p) for top_p in settings.top_p),
        *(Decoding(min_p=min_p) for min_p in settings.min_p),
    ]


class Decoded(Protocol):
    @property
    def decoding(self) -> Decoding: ...


Point = TypeVar("Point", bound=Decoded)


def curves(points: Sequence[Point]) -> list[list[Point]]:
    """Group points into curves over temperature, top-p and min-p.

    The truncated curves start at temperature 1 without truncation. A curve without truncated points is omitted; the
    one over temperature is always first.
    """
    plain = [point for point in points if not point.decoding.truncated]
    ones = [point for point in plain if point.decoding.temperature == 1]
    top_p = [point for point in points if point.decoding.top_p < 1]
    min_p = [point for point in points if point.decoding.min_p > 0]
    return [plain, *(ones + truncated for truncated in (top_p, min_p) if truncated)]
