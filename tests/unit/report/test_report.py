from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlgaf_ray.main import main
from rlgaf_ray.report.figures import (
    CURVES,
    LONGEST_LABEL,
    QualityCurve,
    QualityPoint,
    draw,
    moving_mean,
    quality_diversity,
    svg,
)
from rlgaf_ray.report.page import guard_verdict
from rlgaf_ray.report.runs import load_run

SCRIPT = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def evaluation(share: float) -> dict[str, float | None]:
    return {"eval/judge_share": share, "eval/judge_share_stderr": 0.01, "eval/judge_share_real": 0.75}


def make_run(folder: Path, *, name: str, iterations: int = 40) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"run:\n  name: {name}\n  seed: 3\n")
    rows: list[dict[str, float | None]] = [{"iteration": 0, **evaluation(0.5)}]
    rows += [
        {"iteration": iteration, "reward/mean": iteration / 10, "generator/kl": 0.01 * iteration}
        for iteration in range(1, iterations + 1)
    ]
    rows[-1] |= evaluation(0.7) | {"quick/judge_share": 0.1}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [{"before": "a dull film", "after": SCRIPT}, {"before": "=1+1", "after": "fine & good"}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return folder


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_report_page_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "one", name="one")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text()
    assert "<td>judged as wanted (linear judge)</td><td>0.500 ± 0.020</td><td>0.700 ± 0.020</td><td>0.750</td>" in page
    assert "<th>SFT</th><th>iteration 40</th><th>real text</th>" in page and "seed: 3" in page
    assert page.count("<svg") == 3  # reward, KL and judged share are the metrics that were logged
    assert {path.name for path in (run / "figures").iterdir()} >= {"reward.png", "reward.svg", "judge.png"}


def test_model_output_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", name="<b>one</b>")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "&lt;script&gt;alert(" in page
    parser = Tags()
    parser.feed(page)
    names = {tag for tag, _ in parser.tags}
    assert not names & {"script", "img", "b", "iframe", "link"}
    assert not [attrs for _, attrs in parser.tags if any(name.startswith("on") for name in attrs)]
    # no external resources: attributes hold no address except fragments and XML namespaces
    assert not re.findall(r'(?:src|href)="(?!#)[^"]', page)
    policy = next(attrs["content"] for tag, attrs in parser.tags if attrs.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")


def test_report_page_of_several_runs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name=name) for name in ("one", "two")]
    out = tmp_path / "both"
    assert main(["report", *map(str, runs), "--out", str(out), "--rating-sheet"]) == 0
    page = (out / "report.html").read_text()
    assert "<h1>one and two</h1>" in page and page.count("Samples of") == 2
    sheet = list(csv.DictReader((out / "rating_sheet.csv").open()))
    key = list(csv.DictReader((out / "rating_key.csv").open()))
    assert [row["number"] for row in sheet] == [row["number"] for row in key] == [str(i) for i in range(1, 9)]
    sides = {row["number"]: row["side"] for row in key}
    for row in sheet:
        assert row["rating"] == "" and "side" not in row
        assert sides[row["number"]] == ("before" if row["text"] in ("a dull film", "'=1+1") else "after")
    assert [row["side"] for row in key] != sorted(row["side"] for row in key)


def test_report_of_a_run_that_was_stopped_names_what_was_evaluated(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", name="one")
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*rows, json.dumps({"iteration": 41, "reward/mean": 1.0})]))
    assert main(["report", str(run)]) == 0
    assert "<th>iteration 40</th>" in (run / "report.html").read_text()
    (run / "metrics.jsonl").write_text("".join(rows[:38]))  # before its first evaluation
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "<th>SFT</th><th>not evaluated yet</th><th>real text</th>" in page
    assert "<td>judged as wanted (linear judge)</td><td>0.500 ± 0.020</td><td></td><td>0.750</td>" in page


def test_invalid_run_folders_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 2
    assert "report needs a run folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 1
    assert f"error: {tmp_path} is not a run folder (it has no metrics.jsonl)" in capsys.readouterr().err
    run = make_run(tmp_path / "one", name="one")
    (run / "samples.jsonl").unlink()
    assert main(["report", str(run), "--rating-sheet"]) == 1
    assert "the runs have not finished yet" in capsys.readouterr().err
    (run / "metrics.jsonl").write_text('{"iteration": ')
    assert main(["report", str(run)]) == 1
    assert "is damaged" in capsys.readouterr().err


def test_guard_verdict_lists_non_finite_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", name="one", iterations=2)
    assert guard_verdict(load_run(run)) == "healthy over 2 iterations"
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 3, "reward/mean": None}) + "\n")
    assert guard_verdict(load_run(run)) == "non-finite: reward/mean at iteration 3"
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 4, "generator/skipped_steps": 2.0}) + "\n")
    assert guard_verdict(load_run(run)).startswith("2 optimiser steps were skipped; non-finite")


def test_guard_verdict_lists_verdicts_and_actions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", name="one", iterations=2)
    events = [
        {"iteration": 19, "verdict": "kl_runaway", "evidence": "generator/kl is 0.9", "action": "heal"},
        {"iteration": 30, "verdict": "healthy", "evidence": "", "action": "none"},
    ]
    (run / "guard.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert guard_verdict(load_run(run)) == "iteration 19: kl_runaway (heal): generator/kl is 0.9"


def test_run_names_are_literal_labels(tmp_path: Path) -> None:
    runs = [load_run(make_run(tmp_path / str(row), name=name)) for row, name in enumerate(("_a", "$x_2$", "y" * 99))]
    curve = next(curve for curve in CURVES if curve.name == "kl")
    figure = draw(curve, runs)
    assert figure is not None
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels[:2] == ["\u200b_a", "$x_2$"] and len(labels[2]) == LONGEST_LABEL
    assert ">$x_2$<" in svg(figure)  # text, not a formula


def quality_curves() -> list[QualityCurve]:
    swept = tuple(
        QualityPoint(share, perplexity, distinct_2, self_bleu, label, judged_share_stderr=0.01)
        for share, perplexity, distinct_2, self_bleu, label in (
            (0.47, 143.0, 0.67, 0.20, "1.0"),
            (0.55, 80.0, 0.53, 0.30, "0.9"),
        )
    )
    adversarial = (QualityPoint(0.72, 171.0, 0.676, 0.19, "seed 0"),)
    return [QualityCurve("SFT", swept), QualityCurve("adversarial", adversarial, adversarial=True)]


def test_quality_diversity_figure() -> None:
    figure = quality_diversity(quality_curves(), real=QualityPoint(0.755, 60.0, 0.7, 0.15))
    upper_left, upper_right, lower_left, lower_right = figure.axes
    lines = [container[0] for container in upper_left.containers]
    assert lines[0].get_xydata().tolist() == [[0.67, 0.47], [0.53, 0.55]] and lines[0].get_linestyle() == "-"
    assert lines[1].get_xydata().tolist() == [[0.676, 0.72]] and lines[1].get_marker() == "*"
    assert lines[1].get_linestyle() == "None"
    assert lower_right.containers[0][0].get_xydata().tolist() == [[0.20, 143.0], [0.30, 80.0]]
    assert lower_left.get_yscale() == "log" and upper_left.get_yscale() == "linear"
    for axes in (upper_right, lower_right):  # diversity increases to the right
        assert axes.xaxis_inverted()
    assert not upper_left.xaxis_inverted()
    assert [text.get_text() for text in figure.legends[0].texts] == ["SFT", "adversarial", "real text"]
    assert {text.get_text() for text in upper_left.texts} == {"1.0", "0.9", "seed 0"}
    assert svg(figure).startswith("<svg")
    with pytest.raises(ValueError, match="at least one evaluated model"):
        quality_diversity([QualityCurve("SFT", ())])


def test_moving_mean() -> None:
    assert moving_mean([2.0, 4.0, 6.0]) == [2.0, 3.0, 4.0]
    assert moving_mean([0.0] * 5 + [10.0] * 10)[-1] == 10.0
