"""The metrics table matches docs/metrics.md, and metrics outside the table are formatted too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlgaf_ray.config.task import TASKS, TaskTraits
from rlgaf_ray.evaluation.score import evaluation_score
from rlgaf_ray.metrics import METRICS, VARIANT, columns, metric, own
from rlgaf_ray.report import console, quality
from rlgaf_ray.report.figures import CURVES
from rlgaf_ray.sweep.console import COLUMNS

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented() -> dict[str, str]:
    """Return the unit of every metric in the tables of the page."""
    units: dict[str, str] = {}
    unit = ""
    for line in PAGE.read_text().splitlines():
        if not line.startswith("| `"):
            continue
        names, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if cells[0] != "the same":
            unit = cells[0] if len(cells) > 1 else "s"  # the table of times has no unit column
        units |= dict.fromkeys(re.findall(r"`([a-z]+/[a-z0-9_]+)`", names), unit)
    return units


def test_the_page_documents_every_metric_of_the_table() -> None:
    assert sorted(METRICS.keys() - documented().keys()) == []


def test_the_table_has_every_metric_of_the_page_with_its_unit() -> None:
    known = {name: metric(name).unit for name in documented() if VARIANT.sub("", name) in METRICS or name in METRICS}
    assert known == documented()


def test_every_report_uses_metrics_of_the_table() -> None:
    curves = {name for curve in CURVES for name in curve.metrics}
    views = {*console.TRAINING_COLUMNS, *console.RESULT_LINES, *quality.COLUMNS, *quality.QUALITIES, *COLUMNS, *curves}
    assert sorted(views - METRICS.keys()) == []


@pytest.mark.parametrize(
    "traits", [each for each in TASKS.values() if not each.own_quality], ids=lambda each: each.source
)
def test_every_table_and_curve_has_the_quality_of_a_task(traits: TaskTraits) -> None:
    curves = [name for curve in CURVES for name in curve.metrics]
    for view in (console.TRAINING_COLUMNS, console.RESULT_LINES, quality.COLUMNS, COLUMNS, curves):
        assert traits.quality in view


def test_values_are_formatted_by_the_table() -> None:
    assert metric("eval/f1").shown(71.25) == "71.2" and metric("eval/f1").percent
    assert metric("eval/copied").shown(0.0123) == "1.23%" and not metric("eval/copied").percent
    assert (metric("eval/perplexity_ratio").sign, metric("eval/f1").sign) == (-1.0, 1.0)
    assert (metric("eval/closeness").real, metric("eval/judge_share").real) == (0.0, "eval/judge_share_real")
    assert metric("eval/judge_share_real").shown(0.7) == "0.700"
    assert metric("eval/rhyme_share").head == "rhyme share" and metric("eval/rhyme_share").shown(0.123456) == "0.1235"
    assert metric("rhymes").line == "rhymes" and metric("rhymes").owner == "rhymes"


def test_metrics_of_the_task_come_first_without_duplicates() -> None:
    logged = [
        "eval/b",
        "eval/b_stderr",
        "eval/a",
        "eval/a_real",
        "eval/f1",
        "reward/odd",
        "quick/c",
        "eval/d",
        "eval/b",
    ]
    assert own(logged) == ["eval/b", "eval/a", "quick/c", "eval/d"]
    assert [each.name for each in columns(["eval/f1", "eval/closeness"], logged)] == [
        *("eval/b", "eval/a", "quick/c"),
        "eval/f1",
    ]
    assert [each.name for each in columns([], logged, most=None)] == ["eval/b", "eval/a", "quick/c", "eval/d"]


@pytest.mark.parametrize("name", ["eval/unheard_of", "", "/", "unheard"])
def test_an_unknown_metric_gets_defaults(name: str) -> None:
    assert metric(name).shown(1.0) == "1"
    assert evaluation_score({name: 2.0}, name) == 2.0
