from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from rlgaf_ray.data.tokens import TokenizedTexts, tokenize_once
from rlgaf_ray.errors import UserError


def test_tokens_match_the_tokenizer(texts: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokens = tokenize_once(texts, tokenizer, tmp_path)
    assert tokens.values.dtype == np.int32
    for row, text in enumerate(texts):
        assert tokens[row].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_second_call_reads_the_cache(texts: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    first = tokenize_once(texts, tokenizer, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    table = pa.parquet.read_table(path)
    assert table.schema.field("token_ids").type == pa.list_(pa.int32())
    # Overwrite the cache with marked values, to detect that it is read.
    marked = [[-1] * len(token_ids) for token_ids in table["token_ids"].to_pylist()]
    pa.parquet.write_table(pa.table({"token_ids": pa.array(marked, pa.list_(pa.int32()))}), path)
    second = tokenize_once(texts, tokenizer, tmp_path / "cache")
    assert set(second.values.tolist()) == {-1}
    np.testing.assert_array_equal(first.offsets, second.offsets)


def test_other_texts_or_tokenizers_have_another_cache_file(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenize_once(texts, tokenizer, tmp_path)
    tokenize_once([*texts[:-1], texts[-1] + "!"], tokenizer, tmp_path)
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    other.add_tokens(["film"])
    tokenize_once(texts, other, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_tokenizers_truncation_is_disabled(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    cutting = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    cutting.enable_truncation(3)
    short = PreTrainedTokenizerFast(tokenizer_object=cutting, eos_token="<|endoftext|>")
    assert tokenize_once(texts, short, tmp_path).lengths.min() > 3


def test_an_interrupted_write_leaves_no_file(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_written(table: pa.Table, path: Path, **_: object) -> None:
        path.write_bytes(b"PAR1")
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(pa.parquet, "write_table", half_written)
        with pytest.raises(KeyboardInterrupt):
            tokenize_once(texts, tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(tokenize_once(texts, tokenizer, tmp_path).lengths) == len(texts)


def test_windows_drop_short_texts_and_keep_order() -> None:
    tokens = TokenizedTexts(np.arange(9, dtype=np.int32), np.array([0, 3, 4, 9]))
    assert tokens.windows(np.array([2, 1, 0]), 3).tolist() == [[4, 5, 6], [0, 1, 2]]
    assert tokens.windows(np.array([1]), 3).shape == (0, 3)
    assert tokens.windows(np.array([], np.int64), 3).shape == (0, 3)
    assert tokens.windows(np.array([], np.int64), 3, whole=True).shape == (0, 3)


def test_whole_texts_give_consecutive_windows() -> None:
    tokens = TokenizedTexts(np.arange(10, dtype=np.int32), np.array([0, 7, 8, 10]))
    assert tokens.windows(np.array([2, 1, 0]), 2, whole=True).tolist() == [[8, 9], [0, 1], [2, 3], [4, 5]]
    assert tokens.windows(np.array([2, 1, 0]), 2).tolist() == [[8, 9], [0, 1]]


def test_a_slow_tokenizer_raises(tmp_path: Path) -> None:
    class WordTokenizer:
        pass

    with pytest.raises(UserError, match=r"WordTokenizer is not a fast tokenizer: .*tokenizer\.json"):
        tokenize_once(["a"], WordTokenizer(), tmp_path)  # type: ignore[arg-type]
