"""The page of a comparison in a real browser: all methods and decodings, on a wide screen and on a telephone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import get_args

import numpy as np

from rlgaf_ray.compare.decoding import Decoding, decodings
from rlgaf_ray.compare.measuring import Measured
from rlgaf_ray.compare.page import write_page
from rlgaf_ray.compare.results import table
from rlgaf_ray.compare.trial import Trial
from rlgaf_ray.config import Config, load_config
from rlgaf_ray.config.compare import BuiltInMethod
from rlgaf_ray.types import EVALUATION_PARTS
from tests.integration.test_report_in_browser import SCHEMES, pytestmark, visits
from tests.unit.compare.small import SMALL

__all__ = ["pytestmark"]  # skipped where there is no browser
WIDTHS = (400, 1280)
METHODS: tuple[BuiltInMethod, ...] = get_args(BuiltInMethod)
OWN = ("success", "success_stderr", "legal", "arrives", "distinct_successes", "success_entropy", "expert_kl")


def measured(decoding: Decoding, quality: float, *, chosen: bool) -> Measured:
    level = decoding.temperature * (0.9 if decoding.truncated else 1.0)
    return Measured(
        decoding.temperature,
        quality,
        each=[quality] * 5,
        entropy=None if chosen else 9 * level,
        distinct_2=level / 2,
        metrics={f"eval/{name}": quality for name in OWN},
        top_p=decoding.top_p,
        min_p=decoding.min_p,
    )


def make_page(folder: Path) -> Path:
    """Write the page of a comparison: two replicates of every method, and a failed trial with a long error word."""
    more = ["compare.top_p=[0.9, 0.7]", "compare.min_p=[0.1]", "compare.temperatures=[1.0, 0.8, 0.6]"]
    place = [f"run.root={folder}", "run.name=comparison", f"compare.methods=[{', '.join(METHODS)}]"]
    config: Config = load_config(None, [*SMALL, *more, *place])
    config.run.folder.mkdir()
    draw = np.random.default_rng(0)
    trials = [
        Trial(
            name,
            replicate,
            {
                part: [
                    measured(each, 0.4 + 0.02 * number + float(draw.normal(0, 0.02)), chosen=name.startswith("best"))
                    for each in decodings(config.compare)
                ]
                for part in EVALUATION_PARTS
            },
            rollouts=1_234_567,
            seconds={"training": 12_345.6},
            candidates=16 if name == "best_of_16" else 1,
            sft_steps=100,
        )
        for number, name in enumerate(METHODS)
        for replicate in range(2)
    ]
    return write_page(config, trials, table(trials, METHODS, "sft"), {("gad", 7): "not a word: " + "w" * 300})


def test_the_page_runs_nothing_loads_nothing_and_fits(tmp_path: Path) -> None:
    page = make_page(tmp_path)
    settings = [(width, scheme) for width in WIDTHS for scheme in SCHEMES]
    seen = asyncio.run(visits(page, settings, tmp_path / "profile"))
    for (width, _), visit in zip(settings, seen, strict=True):
        assert visit.title == "Comparison comparison"
        assert visit.complaints == [] and visit.loaded == []
        assert visit.width <= width, f"{visit.width} px at {width}"
        for title in ("Results", "At equal diversity", "Measures", "Budget", "Failures", "Quality against distinct-2"):
            assert title in visit.text
        assert "true verdict as the reward" in visit.text and "KL to the expert" in visit.text
    light, dark = seen[0], seen[1]
    assert light.back != dark.back and light.figure_text != dark.figure_text
