from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlgaf_ray.data.remote import StorageError
from rlgaf_ray.tracking.files import Record


def test_truncate_removes_later_rows_and_an_incomplete_line(tmp_path: Path) -> None:
    record = Record(tmp_path)
    for iteration in range(4):
        record.log(iteration, {"loss": float(iteration)})
        record.log_table(iteration, "rollouts", [{"response": str(iteration)}])
    with record.metrics_path.open("a") as file:
        file.write('{"iteration": 4, "lo')
    record.truncate(2)
    assert [json.loads(line)["iteration"] for line in record.metrics_path.read_text().splitlines()] == [0, 1, 2]
    assert [table["rows"] for table in record.tables()] == [[{"response": str(iteration)}] for iteration in range(3)]


def test_a_table_is_written_once_per_iteration(tmp_path: Path) -> None:
    record = Record(tmp_path)
    assert [record.log_table(1, "rollouts", [{"response": text}]) for text in "ab"] == [True, False]
    assert record.log_table(1, "samples", [{"before": "a"}])
    assert [table["name"] for table in record.tables()] == ["rollouts", "samples"]
    assert record.tables()[0]["rows"] == [{"response": "a"}]


def test_a_failed_write_names_the_file(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.metrics_path = Path("/dev/full")
    with pytest.raises(StorageError, match="/dev/full could not be written: No space left on device"):
        record.log(1, {"loss": 0.0})
