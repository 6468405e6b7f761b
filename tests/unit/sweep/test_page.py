"""The page, figures and table of a sweep."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D
from rich.console import Console

from rlgaf_ray.config import Config, load_config
from rlgaf_ray.sweep.console import cells, describe, result_table
from rlgaf_ray.sweep.figures import curve_figure, knob_figure
from rlgaf_ray.sweep.page import trial_runs, write_page
from rlgaf_ray.sweep.results import TrialResult

RATE, SPEED = "discriminator.updates_per_generator_update", "generator.learning_rate"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    overrides = [
        f"run.root={tmp_path}",
        "run.name=s",
        f"sweep.space.{RATE}.grid=[0.1, 1.0]",
        f"sweep.space.{SPEED}.grid=[1e-4, 2e-4]",
    ]
    return load_config(None, overrides)


@pytest.fixture
def results(config: Config) -> list[TrialResult]:
    made = [
        TrialResult("a", {RATE: 0.1, SPEED: 1e-4}, "finished", 4, 0.6, {"sweep/score": 0.6, "eval/closeness": -0.07}),
        TrialResult("b", {RATE: 1.0, SPEED: 1e-4}, "finished", 4, 0.3, {"sweep/score": 0.3}),
        TrialResult("c", {RATE: 0.1, SPEED: 2e-4}, "stopped by the scheduler", 2, 0.2, {"sweep/score": 0.2}),
        TrialResult("d", {RATE: 1.0, SPEED: 2e-4}, "stopped by the guard", 2, 0.0, {"sweep/score": 0.0}, "<b>bad</b>"),
        TrialResult("e", {RATE: 1.0, SPEED: 2e-4}, "failed", 0, None, {}, "the learner died"),
    ]
    for result in made[:4]:
        folder = config.run.folder / "trials" / result.trial_id
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"run:\n  name: {result.trial_id}\n")
        ratios = {"eval/perplexity_ratio": 1.0, "eval/distinct_2_ratio": 1.0}
        rows = [{"iteration": i, "eval/closeness": 0.1 * i, **ratios} for i in range(0, result.iteration + 1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def points(line: Line2D) -> list[list[float]]:
    """Return the line's points, [P, 2]."""
    return np.asarray(line.get_xydata()).tolist()


def test_knob_figure_plots_the_score_against_a_key(config: Config, results: list[TrialResult]) -> None:
    (axes,) = knob_figure(results, RATE, config.sweep.space[RATE], by=SPEED, metric="sweep/score").axes
    assert axes.get_xscale() == "log"
    lines = [(points(line), line.get_marker()) for line in axes.lines if points(line)]
    assert ([[0.1, 0.6], [1.0, 0.3]], "None") in lines  # connects the finished trials of one learning rate
    assert ([[0.1, 0.6], [1.0, 0.3]], "o") in lines
    assert ([[0.1, 0.2]], "x") in lines and ([[1.0, 0.0]], "s") in lines
    assert len(lines) == 4


def test_knob_figure_has_a_tick_per_text_value() -> None:
    config = load_config(None, ["sweep.space.reward.kind.choice=[logit, log_probability]"])
    result = TrialResult("a", {"reward.kind": "log_probability"}, "finished", 4, 0.6, {})
    (axes,) = knob_figure([result], "reward.kind", config.sweep.space["reward.kind"], by=None, metric="m").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["logit", "log_probability"]
    assert [points(line) for line in axes.lines if points(line)] == [[[1.0, 0.6]]]


def test_curve_figure_marks_early_stops(config: Config, results: list[TrialResult]) -> None:
    runs = trial_runs(config.run.folder, results)
    assert [result.trial_id for result, _ in runs] == ["a", "b", "c", "d"]
    figure = curve_figure("Score", "sweep/score", runs, key=RATE, best="a", quality="eval/closeness")
    assert figure is not None
    lines = [(points(line), line.get_marker()) for line in figure.axes[0].lines if points(line)]
    assert lines[0] == ([[2.0, pytest.approx(0.2)], [4.0, pytest.approx(0.4)]], "None")
    assert [marker for _, marker in lines] == ["None", "None", "None", "x", "None", "s"]
    assert curve_figure("F1", "eval/f1", runs, key=RATE, best=None, quality="eval/closeness") is None


def test_page_is_one_file_without_scripts_or_links(config: Config, results: list[TrialResult]) -> None:
    path = write_page(config, results, results[0], "python -m rlgaf_ray.main best.yaml")
    page = path.read_text()
    assert path == config.run.folder / "sweep.html"
    assert page.count("<svg") == 2 + 4  # one per searched key; score, closeness, both ratios
    assert "<strong>a</strong>" in page and "python -m rlgaf_ray.main best.yaml" in page
    assert "&lt;b&gt;bad&lt;/b&gt;" in page and "the learner died" in page
    assert not re.findall(r"<script|<img|<iframe|<link", page)
    assert not re.findall(r'(?:src|href)="(?!#)[^"]', page)
    names = {path.name for path in (config.run.folder / "figures").iterdir()}
    assert {f"knob_{RATE}.png", "curve_sweep_score.svg"} <= names


def test_page_of_a_sweep_without_results(config: Config) -> None:
    config.run.folder.mkdir(parents=True)
    failed = TrialResult("e", {RATE: 1.0, SPEED: 2e-4}, "failed", 0, None, {}, "no")
    assert "<svg" in write_page(config, [failed], None, None).read_text()


def test_result_table(config: Config, results: list[TrialResult]) -> None:
    console = Console(width=160, record=True, quiet=False, file=(config.run.folder / "out").open("w"))
    console.print(result_table(results, config, results[0]))
    text = console.export_text()
    assert "5 trials, best first by sweep/score" in text
    assert re.search(r"0\.1 +│ +0\.0001 +│ +0\.600 +│ +-0\.070 +│ +4 +│ +finished", text)
    assert "stopped by the guard" in text
    assert describe(results[0].values) == "updates_per_generator_update=0.1, learning_rate=0.0001"
    assert cells({"sweep/score": 0.5, "reward/mean": 2.0}, "reward/mean") == ["reward/mean +2.00", "score 0.500"]
