"""Whatever comes in, the program works or says in one line what is wrong: configs, data files, checkpoints."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlgaf_ray.config import Config, dump_config, load_config
from rlgaf_ray.config.explain import keys_of
from rlgaf_ray.config.rows import RowSettings
from rlgaf_ray.config.task import SquadSettings, TaskSection
from rlgaf_ray.data.columns import read_example
from rlgaf_ray.data.files import read_rows
from rlgaf_ray.data.reviews import _read_path
from rlgaf_ray.data.splits import SHARES
from rlgaf_ray.data.squad import load_squad, squad_pairs
from rlgaf_ray.data.task import load_source
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.main import main
from rlgaf_ray.report.runs import load_run
from tests.unit.fuzz import JSON, cases, damages, refused_or_done, write

KEYS = keys_of(Config)
VALUES = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "null", "true", "[]", "{}", "-1", "0", "1e400", "~", "s3://a", "s3://K:S@b/..", "file:///x"]),
    st.sampled_from(["2020-13-45", "1:99", "0x", "&a *a", "!!int x", "'\\0'", '"\\ud800"', "9" * 5000, "[" * 3000]),
    JSON.map(json.dumps),
)  # fmt: skip


# Configs.


@cases(few=150, full=1000)
@given(st.lists(st.tuples(st.sampled_from(KEYS) | st.text(max_size=20), VALUES), min_size=1, max_size=4))
def test_overrides(pairs: list[tuple[str, str]]) -> None:
    def work() -> None:
        config = load_config(None, [f"{key}={value}" for key, value in pairs])
        dump_config(config).encode()

    refused_or_done(work)


@cases(few=150, full=1000)
@given(st.text(max_size=200) | st.recursive(st.sampled_from([*KEYS, "a: ", "- ", "&a ", "*a", "!!set ", "? ", "{", "}",
       "[", "]", "\n", "  ", ": ", "run:\n", "|", ">", "'", '"', "#", "%", "---\n", "<<: "]), lambda inner: st.lists(
       inner, max_size=6).map("".join), max_leaves=40))  # fmt: skip
def test_yaml_documents(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "config.yaml", text.encode("utf-8", "surrogatepass"))
    refused_or_done(lambda: load_config(path))
    refused_or_done(lambda: load_config(path, small=True))


@cases(few=40, full=500)
@given(damages())
def test_damaged_config_files(tmp_path: Path, damage: Any) -> None:
    path = write(tmp_path / "config.yaml", damage(dump_config(load_config()).encode()))
    refused_or_done(lambda: load_config(path))


@cases(few=60, full=300)
@given(st.dictionaries(st.sampled_from(sorted({key.split(".")[0] for key in KEYS})) | st.text(max_size=6), JSON))
def test_trees_of_wrong_types(tmp_path: Path, tree: dict[str, Any]) -> None:
    text = yaml.safe_dump(tree, allow_unicode=True)
    path = write(tmp_path / "config.yaml", text.encode("utf-8", "surrogatepass"))
    refused_or_done(lambda: load_config(path))


# Data files.

ROWS = [{"text": f"a film with number {row}, \u2028 caf\xe9", "label": row % 2} for row in range(8)]
PAIRS = [{"prompt": f"question {row}", "response": "an answer \u2028"} for row in range(8)]
SQUAD = {"data": [{"title": f"t{row}", "paragraphs": [{"context": "a context", "qas": [
    {"question": "what?", "answers": [{"text": "context", "answer_start": 2}]}]}]} for row in range(4)]}  # fmt: skip


def parquet(columns: dict[str, list[Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


WHOLE = {
    "reviews.csv": ("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)).encode(),
    "reviews.jsonl": lines(ROWS),
    "reviews.parquet": parquet({"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]}),
    "pairs.jsonl": lines(PAIRS),
    "pairs.jsonl.gz": gzip.compress(lines(PAIRS), mtime=0),
    "pairs.json": json.dumps(PAIRS, indent=1).encode(),
    "pairs.csv": ("prompt,response\n" + "".join(f'{row["prompt"]},"{row["response"]}"\n' for row in PAIRS)).encode(),
    "pairs.parquet": parquet({name: [row[name] for row in PAIRS] for name in PAIRS[0]}),
    "squad.json": json.dumps(SQUAD).encode(),
    "squad.json.gz": gzip.compress(json.dumps(SQUAD).encode(), mtime=0),
}


def read(path: Path) -> None:
    """The file through its loader."""
    match path.name.partition(".")[0]:
        case "reviews":
            imdb = {"source": "path", "path": str(path), "splits": dict.fromkeys(SHARES, 2)}
            load_source(TaskSection.model_validate({"imdb": imdb}), base=True)
        case "pairs":
            load_source(TaskSection.model_validate({"name": "jsonl", "jsonl": {"path": str(path)}}), base=True)
        case _:
            squad = {"name": "squad", "squad": {"source": "path", "path": str(path)}}
            load_source(TaskSection.model_validate(squad), base=True)


def test_the_whole_files_are_read(tmp_path: Path) -> None:
    for name in WHOLE:
        path = write(tmp_path / name, WHOLE[name])
        if name.startswith("reviews"):
            assert len(_read_path(path)[0]) == len(ROWS)
        elif name.startswith("pairs"):
            assert [row["response"] for _, row in read_rows(str(path), "key")] == [row["response"] for row in PAIRS]
        else:
            assert len(load_squad(path)) == 4


@pytest.mark.parametrize("name", WHOLE)
@cases(few=200, full=500)
@given(damage=damages())
def test_damaged_data_files(tmp_path: Path, name: str, damage: Any) -> None:
    path = write(tmp_path / name, damage(WHOLE[name]))
    refused_or_done(lambda: read(path))


ROLES = st.sampled_from(["user", "assistant", "system"]) | JSON
CHATS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": st.text(max_size=5) | JSON}))
SOME_COLUMNS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("text", "label", "prompt", "response", "messages"), JSON)
    | dict.fromkeys(("completion", "chosen", "rejected", "conversations", "question", "answer"), JSON | CHATS),
)


@cases(few=80, full=500)
@given(st.lists(JSON | SOME_COLUMNS | st.fixed_dictionaries({"prompt": CHATS | st.text(), "response": st.text()}),
       min_size=1, max_size=6))  # fmt: skip
def test_rows_of_wrong_types(tmp_path: Path, rows: list[Any]) -> None:
    for name in ("reviews.jsonl", "pairs.jsonl"):
        path = write(tmp_path / name, lines(rows))
        refused_or_done(lambda: read(path))  # noqa: B023
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            refused_or_done(lambda: read_example(row, RowSettings(), f"row {number}"))  # noqa: B023


@cases(few=80, full=500)
@given(st.data())
def test_squad_of_wrong_types(tmp_path: Path, data: st.DataObject) -> None:
    content = json.loads(json.dumps(SQUAD))
    node: Any = content
    while isinstance(node, dict | list) and node:
        step = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
        if data.draw(st.booleans()) or not isinstance(node[step], dict | list):
            node[step] = data.draw(JSON)
            break
        node = node[step]
    path = write(tmp_path / "squad.json", json.dumps(content).encode())
    refused_or_done(lambda: squad_pairs(load_squad(path), SquadSettings(source="path", path=str(path))))


COLUMNS = st.sampled_from(
    [[1, None], ["a", None], [b"\xff", b""], [1.5, 2.0], [[1], []], [{"a": 1}, None], [True, None]]
)


@cases(few=60, full=200)
@given(st.dictionaries(st.sampled_from(["text", "label", "other"]), COLUMNS, min_size=1))
def test_parquet_of_wrong_types(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    path = write(tmp_path / "reviews.parquet", parquet(columns))
    refused_or_done(lambda: read(path))
    names = {"text": "prompt", "label": "completion", "other": "rejected"}
    pairs = write(tmp_path / "pairs.parquet", parquet({names[name]: column for name, column in columns.items()}))
    refused_or_done(lambda: read(pairs))


DEEP, HUGE = "[" * 200_000 + "]" * 200_000, "x" * 3_000_000


@pytest.mark.parametrize("content", [DEEP, f'{{"data": {DEEP}}}', HUGE, "9" * 10_000, '{"text": "\\ud800", "label": 1}',
    json.dumps({"text": HUGE, "label": 1}), f"text,label\n{HUGE},1\n", f'text,label\n"{HUGE}', "\ufeff", "\0" * 100,
    '{"prompt": "\\udfff", "response": "a"}', "NaN", '{"data": NaN}'], ids=range(13))  # fmt: skip
@pytest.mark.parametrize("name", WHOLE)
def test_deep_and_huge_files(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path / name, content.encode())
    assert not refused_or_done(lambda: read(path))
    if name.endswith(".gz"):
        write(path, gzip.compress(content.encode()))
        assert not refused_or_done(lambda: read(path))


# Checkpoints and run folders.


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(dump_config(load_config(None, ["run.name=x"])))
    (folder / "metrics.jsonl").write_bytes(lines([{"iteration": n, "reward/mean": 0.5} for n in range(3)]))
    (folder / "samples.jsonl").write_bytes(lines([{"before": "a", "after": "b"}]))
    (folder / "guard.jsonl").write_bytes(
        lines([{"iteration": 1, "verdict": "healthy", "action": "none", "evidence": "e"}])
    )
    checkpoints = Checkpoints(folder / "checkpoints", keep=3)
    for iteration in (1, 2):
        checkpoints.save(
            iteration,
            lambda place: (place / "weights").write_bytes(bytes(range(200))),
            {"iteration": iteration, "healthy": True},
            best=iteration == 1,
        )
    return folder


CHECKPOINT_FILES = [f"step_00000{n}/{name}" for n in (1, 2) for name in ("weights", "state.json", "manifest.json")]
STRANGE = ["step_", "step_x", "step_000003", "step_000004.partial", "step_-1", "other", "step_000005-x"]


@cases(few=120, full=800)
@given(st.lists(st.tuples(st.sampled_from([*CHECKPOINT_FILES, "latest", "best"]), damages() | st.none() | JSON)),
       st.lists(st.sampled_from(STRANGE)))  # fmt: skip
def test_damaged_checkpoints(
    tmp_path_factory: pytest.TempPathFactory, whole_run: Path, changes: list[Any], strange: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("copy") / "checkpoints"
    shutil.copytree(whole_run / "checkpoints", folder)
    for name, change in changes:
        path = folder / name
        if change is None:
            path.unlink(missing_ok=True)
        elif callable(change):
            write(path, change(path.read_bytes() if path.is_file() else b"x"))
        else:
            write(path, json.dumps(change).encode())
    for name in strange:
        (folder / name).mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder, keep=2)

    def newest() -> None:
        path, state, _ = checkpoints.newest_usable()
        assert isinstance(path, Path)
        if state["iteration"] in (1, 2) and path.name.endswith(str(state["iteration"])):
            manifest = json.loads((path / "manifest.json").read_text())
            assert "weights" not in manifest or (path / "weights").read_bytes() == bytes(range(200))

    refused_or_done(newest)
    refused_or_done(lambda: checkpoints.healthy(5))
    refused_or_done(lambda: (checkpoints.named("latest"), checkpoints.named("best")))
    refused_or_done(lambda: checkpoints.discard_after(1))
    shutil.rmtree(folder.parent)


@cases(few=80, full=500)
@given(st.sampled_from(["config.yaml", "metrics.jsonl", "samples.jsonl", "guard.jsonl"]), damages() | JSON)
def test_damaged_run_folders(tmp_path: Path, whole_run: Path, name: str, change: Any) -> None:
    for file in ("config.yaml", "metrics.jsonl", "samples.jsonl", "guard.jsonl"):
        shutil.copy(whole_run / file, tmp_path / file)
    content = (whole_run / name).read_bytes()
    write(tmp_path / name, change(content) if callable(change) else json.dumps(change).encode())
    refused_or_done(lambda: load_run(tmp_path))


# The program as a whole, up to where Ray would start.


@cases(few=25, full=150)
@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=2), st.sampled_from(list(WHOLE)), damages())
def test_main(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    pairs: Any,
    name: str,
    damage: Any,
) -> None:
    def ray_would_start(*words: object, **settings: object) -> None:
        raise UserError("Ray would start")

    monkeypatch.setattr("ray.init", ray_would_start)
    path, root = write(tmp_path / name, damage(WHOLE[name])), tmp_path / "runs"
    task = {"reviews": "imdb", "pairs": "jsonl", "squad": "squad"}[name.partition(".")[0]]
    overrides = [f"{key}={value}" for key, value in pairs if not key.startswith(("run.root", "model", "warmup.cache"))]
    words = [*overrides, f"task.name={task}", f"task.{task}.path={path}", f"run.root={root}", "run.name=x"]
    words += [] if task == "jsonl" else [f"task.{task}.source=path"]
    code = main([*words, f"warmup.cache={tmp_path / 'cache'}", "rollout.engine=transformers", "task.response_tokens=4"])
    error = capsys.readouterr().err.splitlines()
    assert code in (1, 2) and len(error) == 1 and error[0].startswith("error: "), error
    assert not root.exists()


def test_an_interrupt_anywhere_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupted(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlgaf_ray.run.train.train", interrupted)
    assert main(["rollout.engine=transformers"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
