"""Config files that extend each other, their merging, and the origin of each value."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlgaf_ray.config import Config, ConfigError, dump_config, load_config
from rlgaf_ray.config.load import load_with_origins
from rlgaf_ray.main import main


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write YAML files into a temporary working directory."""
    monkeypatch.chdir(tmp_path)

    def make(**files: str) -> None:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)

    return make


def message(*paths: str, small: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(paths, small=small)
    return str(caught.value)


def test_files_apply_from_left_to_right_and_then_overrides(write) -> None:
    write(a="run: {seed: 1, iterations: 5}", b="run: {seed: 2}\nmodel: {dtype: bfloat16}")
    config = load_config(["a.yaml", "b.yaml"], ["run.iterations=7"])
    assert (config.run.seed, config.run.iterations, config.model.dtype) == (2, 7, "bfloat16")
    assert load_config(["b.yaml", "a.yaml"]).run.seed == 1


def test_a_file_extends_a_preset_or_a_relative_file(write, tmp_path: Path) -> None:
    write(mine="extends: imdb_positive\nrun: {seed: 9}")
    expected = load_config("imdb_positive", ["run.seed=9"])
    assert load_config("mine.yaml") == expected
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "more.yaml").write_text("extends: ../mine.yaml\nrun: {iterations: 3}")
    assert load_config("below/more.yaml") == load_config("imdb_positive", ["run.seed=9", "run.iterations=3"])
    assert load_config(tmp_path / "below" / "more.yaml") == load_config("below/more.yaml")


def test_small_applies_with_its_file(write) -> None:
    """A later file overrides an earlier file's ``small``, and its own ``small`` overrides its values."""
    write(
        base="run: {iterations: 9, seed: 1}\nsmall: {run: {iterations: 2, seed: 2}}",
        child="extends: base.yaml\nrun: {seed: 3}",
        last="run: {seed: 4}\nsmall: {run: {seed: 5}}",
    )
    assert load_config("child.yaml").run.iterations == 9
    run = load_config("child.yaml", small=True).run
    assert (run.iterations, run.seed) == (2, 3)
    assert load_config(["child.yaml", "last.yaml"], small=True).run.seed == 5
    assert load_config(["child.yaml", "last.yaml"]).run.seed == 4
    write(none="run: {seed: 1}")
    assert message("none.yaml", small=True).endswith("a section 'small:', but none.yaml has none")
    assert message("none.yaml", "none.yaml", small=True).endswith("but none.yaml and none.yaml have none")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": "extends: a.yaml"}, "circular extends: a.yaml -> a.yaml; remove one of them"),
        (
            {"a": "extends: b.yaml", "b": "extends: ./c.yaml", "c": "extends: a.yaml"},
            "circular extends: a.yaml -> b.yaml -> c.yaml -> a.yaml; remove one of them",
        ),
        (
            {"a": "extends: none.yaml"},
            "cannot read config none.yaml, which a.yaml extends: No such file or directory",
        ),
        (
            {"a": "extends: imdb_positve"},
            "a.yaml: extends: imdb_positve is neither a .yaml file nor a preset; did you mean imdb_positive?",
        ),
        ({"a": "extends: [x, y]"}, "a.yaml: extends must be a preset or a .yaml file, not ['x', 'y']"),
        ({"a": "small: {extends: x}\nextends: b.yaml", "b": "run: 3"}, "b.yaml: run=3: must be a section with name, "
         "root, storage_timeout_seconds, seed, iterations"),
    ],
)  # fmt: skip
def test_an_invalid_extends_is_reported(write, files: dict[str, str], expected: str) -> None:
    write(**files)
    assert message("a.yaml") == expected


def test_an_error_names_the_file_that_set_the_value(write) -> None:
    write(a="run: {seed: -1}", b="extends: a.yaml\nrun: {iterations: 3}", c="small: {run: {sed: 1}}")
    assert message("b.yaml") == "a.yaml: run.seed=-1: must be greater than or equal to 0"
    assert message("c.yaml", small=True) == "c.yaml: unknown key run.sed; did you mean run.seed?"
    assert load_config(["b.yaml"], ["run.seed=1"]).run.seed == 1


def test_sections_with_a_shared_anchor_stay_independent(write) -> None:
    write(a="task: {jsonl: &x {max_rows: 3}, hub: *x}", b="task: {jsonl: {max_rows: 4}}")
    for config in (load_config(["a.yaml", "b.yaml"]), load_config("a.yaml", ["task.jsonl.max_rows=4"])):
        assert (config.task.jsonl.max_rows, config.task.hub.max_rows) == (4, 3)


VALUES = ["generator.betas=[0.8, 0.9]", 'discriminator.question="a\\n\\n# b: c"', "model.generator='ü: 1 # x'"]


def test_each_changed_value_has_a_comment_with_its_origin(write, capsys) -> None:
    write(
        mine="extends: imdb_positive\nrun: {seed: 0, iterations: 3}\ntask: {jsonl: {chat_template_kwargs: {a: 1}}}\n"
        "sweep: {space: {run.seed: {grid: [1, 2]}}}"
    )
    assert main(["mine.yaml", "--small", *VALUES, "--print-config"]) == 0
    text = capsys.readouterr().out
    config, origins = load_with_origins("mine.yaml", VALUES, small=True)
    assert text == dump_config(config, origins)
    assert yaml.safe_load(text) == yaml.safe_load(dump_config(config))
    write(printed=text)
    assert load_config("printed.yaml") == config
    lines = text.splitlines()
    for expected in (
        "  iterations: 3  # mine.yaml",
        "  learning_rate: 0.0001  # small (imdb_positive.yaml)",
        "  contrast: labels  # imdb_positive.yaml",
        "  betas:  # command line",
        "      a: 1  # mine.yaml",
        "      grid:  # mine.yaml",
        "  generator: 'ü: 1 # x'  # command line",
    ):
        assert expected in lines, expected
    assert "  seed: 0" in lines, "set, but equal to the default"
    assert sum("  # " in line for line in dump_config(Config(), {}).splitlines()) == 0


def test_a_replaced_section_loses_the_origins_of_its_values(write) -> None:
    write(a="run: {seed: 5, iterations: 3}")
    config, origins = load_with_origins("a.yaml", ["run={iterations: 4}"])
    assert (config.run.seed, config.run.iterations) == (0, 4)
    assert {".".join(key): str(origin) for key, origin in origins.items()} == {"run.iterations": "command line"}
