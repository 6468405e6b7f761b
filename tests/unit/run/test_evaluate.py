from __future__ import annotations

import pytest

from rlgaf_ray.main import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate"], "error: evaluate needs a run folder: rlgaf evaluate runs/NAME [runs/OTHER ...]\n"),
        (["evaluate", "nowhere"], "nowhere is no finished run (no config.yaml or generator/ in it)"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(words: list[str], expected: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) in (1, 2)
    assert expected in capsys.readouterr().err


def test_temperatures_are_positive_numbers(capsys) -> None:
    assert main(["evaluate", "run", "--temperatures", "1,-2"]) == 2
    assert capsys.readouterr().err == (
        "error: rlgaf evaluate: invalid value for '--temperatures': '1,-2' is no list of positive numbers such as "
        "0.8,1; see rlgaf evaluate --help\n"
    )
