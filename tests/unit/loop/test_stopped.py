"""A stopped run reports its last evaluation, and never that of the SFT model as the trained one's."""

from __future__ import annotations

from pathlib import Path

from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.testing import FakeRoles
from rlgaf_ray.types import Metrics
from tests.unit.loop.test_healing import Loop, run, settings

CONFIG = settings("guard.action=warn", "run.iterations=6", "evaluation.every=3")


class Counting(Loop):
    """The evaluation measures the iteration, and samples its number."""

    def evaluate(self) -> tuple[Metrics, list[str]]:
        return {"eval/closeness": float(self.iteration)}, [str(self.iteration)]


def stopped(folder: Path, after: int | None, *, resume: bool = True) -> Outcome:
    return run(CONFIG, FakeRoles(), folder, resume=resume, stop_after=after, kind=Counting)[0]


def test_a_run_stopped_before_its_first_evaluation_has_none(tmp_path: Path) -> None:
    outcome = stopped(tmp_path, 2, resume=False)
    assert (outcome.iteration, outcome.evaluated, outcome.last, outcome.samples_after) == (2, 0, {}, [])
    assert outcome.first == {"eval/closeness": 0.0} and outcome.samples_before == ["0"]


def test_the_last_evaluation_survives_stops_and_resumes(tmp_path: Path) -> None:
    for after, iteration, evaluated in ((2, 2, 0), (4, 4, 3), (5, 5, 3), (None, 6, 6), (None, 6, 6)):
        outcome = stopped(tmp_path, after, resume=after != 2)
        assert (outcome.iteration, outcome.evaluated) == (iteration, evaluated)
        assert outcome.last == ({"eval/closeness": float(evaluated)} if evaluated else {})
        assert outcome.samples == ([("0", str(evaluated))] if evaluated else [])
