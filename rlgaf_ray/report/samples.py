"""Print samples of several models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlgaf_ray.report.console import visible


class Scored(Protocol):
    @property
    def text(self) -> str: ...

    @property
    def score(self) -> float | None: ...


def show_samples(prompt: str, samples: Mapping[str, Sequence[Scored]], console: Console) -> None:
    """Print a row per sample and a column per model with its scores; a higher score is more like a demonstration."""
    table = Table(title=escape(visible(prompt)), show_lines=True, expand=True, title_justify="left")
    for name in samples:
        table.add_column(name, ratio=1)
        table.add_column("score", justify="right")
    for row in zip_longest(*samples.values()):
        cells: list[str] = []
        for item in row:
            cells += [escape(visible(item.text)), "" if item.score is None else f"{item.score:.2f}"]
        table.add_row(*cells)
    console.print(table, highlight=False)
