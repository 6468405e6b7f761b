"""File formats: values are read unchanged, and errors name file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlgaf_ray.data.files import read_rows
from rlgaf_ray.errors import UserError

ROWS = [
    {"prompt": "When?", "response": "2020-01-01"},
    {"prompt": "Which number?", "response": "007"},
    {"prompt": "What is left?", "response": "None"},
    {"prompt": "Two\nlines, and \"quotes\"?", "response": " é \u2028 \U0001f642 "},
]  # fmt: skip


def table(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def separated(rows: list[dict[str, Any]], separator: str = ",", newline: str = "\n") -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=separator, lineterminator=newline)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def json_lines(rows: list[dict[str, Any]], newline: str = "\n") -> bytes:
    return newline.join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


FILES = {
    "rows.jsonl": json_lines(ROWS),
    "windows.jsonl": b"\xef\xbb\xbf" + json_lines(ROWS, "\r\n") + b"\r\n\r\n",
    "rows.ndjson": json_lines(ROWS),
    "ROWS.JSONL.GZ": gzip.compress(json_lines(ROWS)),
    "rows.jsonl.gz": gzip.compress(json_lines(ROWS)),
    "ROWS.JSON": json.dumps(ROWS, indent=2).encode(),
    "lines.json": json_lines(ROWS),
    "rows.csv": separated(ROWS),
    "windows.csv": b"\xef\xbb\xbf" + separated(ROWS, newline="\r\n"),
    "rows.csv.gz": gzip.compress(separated(ROWS)),
    "rows.tsv": separated(ROWS, "\t"),
    "rows.parquet": table(ROWS),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    """Loaders that infer types would turn these answers into a timestamp, a number and a missing value."""
    (tmp_path / name).write_bytes(FILES[name])
    assert [row for _, row in read_rows(str(tmp_path / name), "key")] == ROWS


def test_rows_carry_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert read_rows(str(path), "key") == [(f"{path}, line 2", {"a": 1}), (f"{path}, line 4", {"a": 2})]
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"one\ntwo",x\n\ny,\n')
    assert read_rows(str(path), "key") == [
        (f"{path}, line 2", {"a": "one\ntwo", "b": "x"}),
        (f"{path}, line 5", {"a": "y", "b": None}),
    ]


def test_nested_null_keys_of_parquet_are_dropped(tmp_path: Path) -> None:
    call = {"x": None, "id": 1}
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [call]}]},
        {"messages": [{"role": "user", "content": "c", "name": "d"}], "other": 1},
    ]
    path = tmp_path / "a.parquet"
    path.write_bytes(table(rows))
    found = [row for _, row in read_rows(str(path), "key")]
    assert found[0]["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "tool_calls": [{"id": 1}]},
    ]
    assert found[1]["messages"] == [{"role": "user", "content": "c", "name": "d"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": ', r"a\.jsonl, line 2 is not valid JSON \(Expecting value\)"),
        ("a.jsonl", b'{"a": 1}\n[2]', "line 2 is not a JSON object"),
        ("a.jsonl", b"\n\n", "is empty"),
        ("a.jsonl", b"\xff", r"line 1 is not UTF-8 \(byte 0xff\): save it as UTF-8"),
        ("a.jsonl", '{"a": "x"}\n{"a": "caf\xe9"}'.encode("cp1252"), r"line 2 is not UTF-8 \(byte 0xe9\)"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "is UTF-16: save it as UTF-8"),
        ("a.jsonl.gz", b"{}", "is not a valid gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}' * 99, mtime=0)[:-9], "is not a valid gzip file"),
        ("a.json", b'[{"a": 1},\n {"a": }]', r"a\.json, line 2, is not valid JSON"),
        ("a.json", b'[{"a": 1}, 2]', "row 2 is not a JSON object"),
        ("a.json", b'{\n"data": []\n}', "line 1 is not valid JSON"),
        ("a.csv", b"a,b\n1,2,3\n", "line 2 has 3 fields, and the first line names 2 columns: quote"),
        ("a.csv", b'a,b\n1,2\n"1,2\n', "line 3 is not valid CSV"),
        ("a.csv", b"a,a\n1,2\n", "has the column 'a' more than once"),
        ("a.csv", b"prompt;response\na;b\n", "separates its columns by ';': export it with ','"),
        ("a.csv", b"a,b\n", "is empty"),
        ("a.parquet", b"PAR1 and no more", "is not a readable Parquet file"),
        ("a.xlsx", b"PK", r"unknown suffix: the formats are \.jsonl, \.ndjson, \.json, \.csv, \.tsv, \.parquet"),
    ],
)
def test_a_damaged_file_raises_with_its_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_rows(str(tmp_path / name), "task.jsonl.path")
    assert name in str(caught.value)


def test_invalid_utf8_in_parquet_raises(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"prompt": text}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet is not a readable Parquet file"):
        read_rows(str(tmp_path / "a.parquet"), "key")


def test_csv_fields_may_exceed_the_default_limit(tmp_path: Path) -> None:
    text = "x" * 1_000_000
    (tmp_path / "a.csv").write_bytes(separated([{"prompt": text, "response": "y"}]))
    assert read_rows(str(tmp_path / "a.csv"), "key")[0][1] == {"prompt": text, "response": "y"}
