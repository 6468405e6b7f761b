from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlgaf_ray.report.figures import QualityPoint
from rlgaf_ray.report.quality import Comparison, Evaluated, advantage, models_table, temperatures_table

SFT = "SFT"


def row(model: str, temperature: float, *, distinct_2: float, share: float) -> Evaluated:
    metrics = {
        "eval/judge_share": share,
        "eval/judge_share_stderr": 0.01,
        "eval/judge_share_real": 0.8,
        "eval/judge_share_real_stderr": 0.02,
        "eval/two_sample_auc": 0.6,
        "eval/distinct_2": distinct_2,
        "eval/perplexity": 100 * temperature,
        "eval/perplexity_ratio": temperature,
        "eval/self_bleu": 0.2,
        "eval/closeness": -0.25,
    }
    return Evaluated(model, temperature, metrics)


OTHERS = {"eval/perplexity": 90.0, "eval/self_bleu": 0.2}
ROWS = [
    row(SFT, 1.0, distinct_2=0.7, share=0.5),
    row(SFT, 0.8, distinct_2=0.5, share=0.6),
    row(SFT, 0.7, distinct_2=0.4, share=0.75),
    row("run", 1.0, distinct_2=0.6, share=0.7),
    row("run", 0.8, distinct_2=0.3, share=0.8),
]


def test_advantage_interpolates_the_curve_at_equal_diversity() -> None:
    sft = ROWS[:3]
    assert advantage(ROWS[3], sft, "eval/judge_share") == (
        "run at temperature 1 against SFT, at equal distinct-2 0.600: 0.700 against 0.550 (+0.150)"
    )
    assert advantage(row("run", 1.0, distinct_2=0.45, share=0.6), sft, "eval/judge_share").endswith(
        "0.600 against 0.675 (-0.075)"
    )
    assert advantage(ROWS[4], sft, "eval/judge_share") == (
        "run at temperature 0.8 against SFT: distinct-2 0.300 is outside the curve (0.400 to 0.700)"
    )


def test_the_quality_of_walks_is_their_success() -> None:
    rows = [
        Evaluated(each.model, each.temperature, walks | {"eval/success": share, "eval/legal": 1.0})
        for each, share in zip(ROWS, (0.1, 0.3, 0.4, 0.2, 0.5), strict=True)
        if (walks := {name: value for name, value in each.metrics.items() if "judge" not in name})
    ]
    comparison = Comparison(rows, ["run"])
    assert comparison.quality == "eval/success"
    assert comparison.advantages()[0].endswith("at equal distinct-2 0.600: 0.200 against 0.200 (+0.000)")
    assert comparison.figure().axes[0].get_ylabel() == "answers that reach the goal"
    heads = next(line for line in printed(temperatures_table(rows)) if line[0] == "model")
    assert heads[3] == "success"
    assert ["answers that reach the goal", "0.100", "0.200", ""] in printed(models_table(rows))


def test_a_quality_that_should_fall_is_said_to() -> None:
    """Without a better metric: a run that a classifier tells more easily from real text has no advantage."""
    aucs = ((SFT, 0.7, 0.66), (SFT, 0.5, 0.66), ("run", 0.6, 0.8))
    rows = [
        Evaluated(model, 1.0, {"eval/distinct_2": x, "eval/two_sample_auc": auc} | OTHERS) for model, x, auc in aucs
    ]
    comparison = Comparison(rows, ["run"])
    assert comparison.advantages() == [
        "run at temperature 1 against SFT, at equal distinct-2 0.600: 0.800 against 0.660 (+0.140, lower is better)"
    ]
    assert comparison.figure().axes[0].get_ylabel() == "AUC real or generated (bag of words), lower is better"


def test_comparison_round_trips_and_is_drawn(tmp_path: Path) -> None:
    comparison = Comparison(ROWS, ["run"], QualityPoint(0.75, 90.0, 0.65, 0.2))
    comparison.save(tmp_path)
    loaded = Comparison.load(tmp_path)
    assert loaded == comparison
    assert [sentence.split(":")[0] for sentence in loaded.advantages()] == [
        "run at temperature 1 against SFT, at equal distinct-2 0.600",
        "run at temperature 0.8 against SFT",
    ]
    axes = loaded.figure().axes[0]
    drawn = {container.get_label(): container[0].get_xydata().tolist() for container in axes.containers}
    assert drawn == {SFT: [[0.4, 0.75], [0.5, 0.6], [0.7, 0.5]], "run": [[0.3, 0.8], [0.6, 0.7]]}


def printed(shown: Table) -> list[list[str]]:
    """Return the cells of each line of a printed table."""
    console = Console(width=240, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(shown)
    return [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
        for line in console.export_text().splitlines()
    ]


def test_models_table_has_real_text_and_intervals() -> None:
    lines = printed(models_table(ROWS))
    assert lines[0] == ["validation prompts, one sample each, temperature 1"]
    assert ["", SFT, "run", "real text"] in lines
    assert ["judged as wanted (linear judge)", "0.500 ± 0.020", "0.700 ± 0.020", "0.800 ± 0.039"] in lines
    assert ["AUC real or generated (bag of words)", "0.600", "0.600", "0.500"] in lines
    assert ["closeness to real text", "-0.250", "-0.250", "0.000"] in lines
    assert not any("F1" in line[0] for line in lines)


def test_temperatures_table_is_sorted_by_model_and_temperature() -> None:
    lines = printed(temperatures_table(ROWS))
    assert [line[:2] for line in lines if line[0] in (SFT, "run")] == [
        *([SFT, "0.7"], [SFT, "0.8"], [SFT, "1"]),
        *(["run", "0.8"], ["run", "1"]),
    ]
    heads = next(line for line in lines if line[0] == "model")
    cold = next(line for line in lines if line[:2] == [SFT, "0.7"])
    shown = dict(zip(heads, cold, strict=True))
    assert (shown["linear judge"], shown["closeness"], shown["distinct-2"]) == ("0.750", "-0.250", "0.400")
    assert "F1, %" not in heads
