from __future__ import annotations

from pathlib import Path

from rich.console import Console

from rlgaf_ray.report.figures import QualityPoint
from rlgaf_ray.report.quality import Comparison, Evaluated, advantage, table

SFT = "SFT"


def row(model: str, temperature: float, *, distinct_2: float, share: float) -> Evaluated:
    metrics = {
        "eval/judge_share": share,
        "eval/judge_share_stderr": 0.01,
        "eval/distinct_2": distinct_2,
        "eval/perplexity": 100 * temperature,
        "eval/perplexity_ratio": temperature,
        "eval/self_bleu": 0.2,
        "eval/gap_closed": 0.5,
    }
    return Evaluated(model, temperature, metrics)


ROWS = [
    row(SFT, 1.0, distinct_2=0.7, share=0.5),
    row(SFT, 0.8, distinct_2=0.5, share=0.6),
    row(SFT, 0.7, distinct_2=0.4, share=0.75),
    row("run", 1.0, distinct_2=0.6, share=0.7),
    row("run", 0.8, distinct_2=0.3, share=0.8),
]


def test_the_advantage_is_read_off_the_curve_at_equal_diversity() -> None:
    sft = ROWS[:3]
    assert advantage(ROWS[3], sft, "eval/judge_share") == (
        "run at temperature 1 against SFT, at equal distinct-2 0.600: 0.700 against 0.550 (+0.150)"
    )
    assert advantage(row("run", 1.0, distinct_2=0.45, share=0.6), sft, "eval/judge_share").endswith(
        "0.600 against 0.675 (-0.075)"
    )
    assert advantage(ROWS[4], sft, "eval/judge_share") == (
        "run at temperature 0.8 against SFT: distinct-2 0.300 lies outside the curve (0.400 to 0.700)"
    )


def test_a_comparison_comes_back_from_its_file_and_is_drawn(tmp_path: Path) -> None:
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


def test_the_table_shows_what_was_measured() -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(ROWS))
    lines = console.export_text().splitlines()
    (line,) = [line for line in lines if "run" in line and "0.7" in line]
    assert "0.700 ± 0.010" in line and "50.0%" in line and "0.600" in line
    assert not any("F1" in line for line in lines)
