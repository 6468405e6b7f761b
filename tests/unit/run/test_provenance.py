"""What a finished run says that it was trained on, beside what is there when it is evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlgaf_ray.errors import UserError
from rlgaf_ray.run.evaluate import provenance_notes
from rlgaf_ray.run.provenance import check_evaluated, recorded

BEGUN = {"data": "d", "model": "m", "torch": "2.1", "ray": "3.0", "sft_model": "s", "contrast-7": "c"}
INPUTS = {name: BEGUN[name] for name in ("data", "model", "torch", "ray")}


def run(folder: Path, provenance: object = BEGUN, *, splits: str = BEGUN["data"]) -> Path:
    folder.mkdir()
    (folder / "data.json").write_text(json.dumps({"splits_sha256": splits, "provenance": provenance}))
    return folder


def test_nothing_is_said_where_nothing_changed(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    assert check_evaluated(folder, INPUTS) == []
    assert check_evaluated(folder, {"sft_model": "s", "contrast-8": "another"}) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "e"}, "cannot be evaluated: the data differ from those the run started with: restore them"),
        ({"model": "n"}, "cannot be evaluated: model.generator differs from the model the run started with: restore"),
        ({"data": "e", "torch": "9"}, "cannot be evaluated: the data differ from those"),
    ],
)
def test_other_data_and_another_model_are_refused(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    folder = run(tmp_path / "run")
    with pytest.raises(UserError) as error:
        check_evaluated(folder, INPUTS | changed)
    assert str(error.value).startswith(f"{folder} {message}")


def test_other_versions_and_another_warm_up_are_said(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    now = INPUTS | {"torch": "2.2", "ray": "3.1"}
    assert check_evaluated(folder, now) == [
        f"{folder} was trained with torch 2.1, ray 3.0, and is evaluated with torch 2.2, ray 3.1"
    ]
    (said,) = check_evaluated(folder, {"sft_model": "t"})
    assert said.startswith(f"warmup.cache holds a different SFT model than {folder} started with")


@pytest.mark.parametrize("provenance", [None, "text"])
def test_a_run_without_a_record_is_evaluated_with_a_note(tmp_path: Path, provenance: object) -> None:
    (said,) = check_evaluated(run(tmp_path / "run", provenance), INPUTS)
    assert "does not record what it was trained on" in said
    (tmp_path / "run" / "data.json").unlink()
    assert recorded(tmp_path / "run") is None


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    for text in ("{", "[]"):
        (folder / "data.json").write_text(text)
        with pytest.raises(UserError, match=r"data\.json cannot be read .*: restore the file that the run wrote"):
            recorded(folder)


def test_runs_on_different_data_are_evaluated_apart(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a"), run(tmp_path / "b", splits="e"), run(tmp_path / "c", None)]
    with pytest.raises(UserError, match=r"b and .*a were trained on different data: evaluate them separately"):
        provenance_notes(runs, [INPUTS] * 3)
    notes = provenance_notes([runs[0], runs[2]], [INPUTS] * 2)
    assert len(notes) == 1 and notes[0].startswith(str(runs[2]))


def test_columns_for_reward_functions_do_not_separate_runs(tmp_path: Path) -> None:
    runs = [run(tmp_path / "without"), run(tmp_path / "with", BEGUN | {"data": "splits and columns"})]
    assert provenance_notes(runs, [INPUTS] * 2) == provenance_notes(runs[::-1], [INPUTS] * 2) == []
