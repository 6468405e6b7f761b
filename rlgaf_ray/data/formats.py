"""Readers of JSON Lines, JSON, CSV and Parquet that keep values unchanged and record each row's location.

The loaders of ``datasets`` infer types from all rows: an answer "007" becomes 7, "None" a missing value, "2020-01-01"
a timestamp. They also do not report which line of a file is malformed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from rlgaf_ray.errors import UserError

PlacedRow = tuple[str, dict[str, Any]]
"""A row's location, such as ``rows.jsonl, line 7``, and its values by column."""
LONGEST_FIELD = 2**31 - 1  # characters of a CSV field
OTHER_SEPARATORS = ";|\t"


def json_lines(name: str, content: bytes) -> Iterator[PlacedRow]:
    """Read one object per line and skip blank lines. Only a newline ends a line: strings may contain U+2028."""
    for number, line in enumerate(decoded(name, content).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not valid JSON ({_reason(error)}): write one object per line") from error
        yield place, _object(place, row)


def json_list(name: str, content: bytes) -> Iterator[PlacedRow]:
    """Read a list of objects, or one object per line."""
    text = decoded(name, content)
    if not text.lstrip().startswith("["):
        yield from json_lines(name, content)
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}," if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{name}{line} is not valid JSON ({_reason(error)}): write a list of objects") from error
    for number, row in enumerate(rows, start=1):
        place = f"{name}, row {number}"
        yield place, _object(place, row)


def csv_rows(name: str, content: bytes, *, separator: str = ",") -> Iterator[PlacedRow]:
    """Read a CSV whose first line names the columns. All values are text; an empty field is None."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(decoded(name, content), newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        columns = [column.strip() for column in next(reader, [])]
        _check_columns(name, columns)
        other = next((sign for sign in OTHER_SEPARATORS if len(columns) == 1 and sign in columns[0]), None)
        if other:
            raise UserError(f"{name} separates its columns by {other!r}: export it with {separator!r} (.tsv: by tabs)")
        line = reader.line_num + 1
        for fields in reader:
            place = f"{name}, line {line}"
            line = reader.line_num + 1
            if not fields:
                continue
            if len(fields) != len(columns):
                raise UserError(
                    f"{place} has {len(fields)} fields, and the first line names {len(columns)} columns: quote fields "
                    "that hold separators or line breaks"
                )
            yield place, {column: field or None for column, field in zip(columns, fields, strict=True)}
    except csv.Error as error:
        raise UserError(
            f"{name}, line {line} is not valid CSV ({error}): quote its fields, or export it again"
        ) from error


def _check_columns(name: str, columns: list[str]) -> None:
    for column in columns:
        if columns.count(column) > 1:
            raise UserError(f"{name} has the column {column!r} more than once: rename the others")


def parquet_rows(name: str, content: bytes) -> Iterator[PlacedRow]:
    """Read Parquet and drop null keys of nested values: Parquet gives every struct the keys of all others."""
    number = 0
    try:
        file = pa.parquet.ParquetFile(pa.BufferReader(content))
        _check_columns(name, file.schema_arrow.names)
        for batch in file.iter_batches():
            batch.validate(full=True)
            for row in batch.to_pylist():
                number += 1
                yield f"{name}, row {number}", without_nested_nulls(row)
    except (pa.ArrowException, OSError, ValueError) as error:
        where = f"row {number + 1} or after" if number else "its beginning"
        raise UserError(
            f"{name} is not a readable Parquet file ({_reason(error)}, {where}): export it again"
        ) from error


READERS: Mapping[str, Callable[[str, bytes], Iterator[PlacedRow]]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_list,
    ".csv": csv_rows,
    ".tsv": partial(csv_rows, separator="\t"),
    ".parquet": parquet_rows,
}
"""Readers by file suffix."""


def without_nested_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a typed table without null keys in its structs; null columns are kept."""
    return {name: without_nulls(value) for name, value in row.items()}


def without_nulls(value: Any) -> Any:
    """Return the value without the keys, at any depth, whose value is null."""
    match value:
        case Mapping():
            return {key: without_nulls(item) for key, item in value.items() if item is not None}
        case list() | tuple():
            return [without_nulls(item) for item in value]
    return value


def decoded(name: str, content: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark. Raises ``UserError`` naming the line."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{name} is UTF-16: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}, line {line} is not UTF-8 (byte 0x{content[error.start]:02x}): save it as UTF-8"
        ) from error


def _object(place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{place} is not a JSON object: write {{column: value}}")
    return row


def _reason(error: Exception) -> str:
    text = error.msg if isinstance(error, json.JSONDecodeError) else str(error) or type(error).__name__
    return " ".join(text.split())[:200].rstrip(".")
