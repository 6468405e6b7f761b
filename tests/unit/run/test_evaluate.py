from __future__ import annotations

import pytest

from rlgaf_ray.main import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate"], "error: evaluate needs a run folder: rlgaf evaluate runs/NAME [runs/OTHER ...]\n"),
        (["evaluate", "nowhere"], "nowhere is not a finished run (it has no config.yaml or no generator/)"),
    ],
)
def test_a_folder_that_is_not_a_run_is_rejected(words: list[str], expected: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) in (1, 2)
    assert expected in capsys.readouterr().err


def test_temperatures_are_positive_numbers(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "run", "--temperatures", "1,-2"])
    assert "invalid comma-separated positive numbers value: '1,-2'" in capsys.readouterr().err
