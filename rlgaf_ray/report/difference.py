"""``rlgaf diff``: compare the config, versions and results of two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from rlgaf_ray.config.compose import leaves
from rlgaf_ray.config.explain import short
from rlgaf_ray.config.reader import read_yaml
from rlgaf_ray.data.storage import Place
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.metrics import metric
from rlgaf_ray.report.listing import best_of
from rlgaf_ray.report.runs import Run, load_run

OWN = ("run.name", "run.root", "task.date")  # keys in which any two runs differ
MISSING = "-"
VERSIONS = ("rlgaf_ray", "torch", "transformers", "tokenizers", "ray", "vllm")
SHOWN = 12  # characters of a hash


def differences(folders: Sequence[Path], places: Sequence[Place]) -> Group:
    """Build three tables: config keys, the provenance in the newest checkpoints, and the newest evaluations.

    ``folders`` are the local copies of both runs, ``places`` their origins. Raises ``UserError`` if one is not a run.
    """
    runs = load_run(folders[0]), load_run(folders[1])
    names = [run.name for run in runs]
    if names[0] == names[1]:
        names = [str(place) for place in places]
    first, second = (_flat(run.config) for run in runs)
    config = changed(first, second, without=OWN)
    begun = [Checkpoints(place / "checkpoints", keep=1).provenance() for place in places]
    recorded = changed(begun[0], begun[1])
    ordered = sorted(recorded, key=lambda key: (key not in VERSIONS, key))
    return Group(
        _table("config", names, {key: (_value(a), _value(b)) for key, (a, b) in config.items()}),
        _table("versions and data", names, {key: (_cut(recorded[key][0]), _cut(recorded[key][1])) for key in ordered}),
        results_table(runs, names),
    )


def changed(
    first: Mapping[str, Any], second: Mapping[str, Any], without: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, with both values; a missing value is ``-``."""
    keys = [key for key in dict.fromkeys([*first, *second]) if key not in without]
    pairs = {key: (first.get(key, MISSING), second.get(key, MISSING)) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def results_table(runs: tuple[Run, Run], names: list[str]) -> Table:
    """Build the table of the newest and the best value of each metric that both runs have evaluated."""
    table = Table(title="results: newest evaluation, best of the run", title_justify="left")
    for head in ("metric", *names, "difference", "best", "best", "difference"):
        table.add_column(head, justify="left" if head == "metric" else "right", overflow="fold")
    for name in (each for each in runs[0].evaluations[0] if each in runs[1].evaluations[0]):
        if name.endswith(("_stderr", "_real")):
            continue
        last = [run.last(name) for run in runs]
        found = [best_of(run, name) if metric(name).better else None for run in runs]
        best = [None if each is None else each[0] for each in found]
        table.add_row(name, *_compared(name, *last), *_compared(name, *best))
    return table


def _compared(name: str, first: float | None, second: float | None) -> list[str]:
    shown = [MISSING if value is None else metric(name).shown(value) for value in (first, second)]
    if first is None or second is None:
        return [*shown, ""]
    difference = second - first
    return [*shown, f"{'+' if difference >= 0 else '-'}{metric(name).shown(abs(difference))}"]


def _table(title: str, names: list[str], rows: Mapping[str, tuple[str, str]]) -> Table | str:
    if not rows:
        return f"{title}: the same"
    table = Table(title=title, title_justify="left")
    for head in ("", *names):
        table.add_column(head, overflow="fold")
    for key, values in rows.items():
        table.add_row(key, *map(escape, values))
    return table


def _value(value: Any) -> str:
    return value if value == MISSING else short(value)


def _flat(config: str) -> dict[str, Any]:
    tree = read_yaml(config)
    return {".".join(key): value for key, value in leaves(tree)} if tree else {}


def _cut(text: str) -> str:
    """Abbreviate a hash."""
    return f"{text[:SHOWN]}..." if len(text) >= 40 and " " not in text else text
