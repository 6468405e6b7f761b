"""Tokenise texts once and cache the tokens on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from rlgaf_ray.data.cache import content_hash, write_atomically
from rlgaf_ray.data.encoder import fast_copy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Part of the cache key; increase when the file's content changes for the same texts and tokenizer.
FORMAT = "tokens 2"


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedTexts:
    """Concatenated token ids of many texts; text i is ``values[offsets[i]:offsets[i + 1]]``."""

    values: np.ndarray  # int32 [total]
    offsets: np.ndarray  # int64 [N + 1]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def windows(self, rows: np.ndarray, num_tokens: int, *, whole: bool = False) -> np.ndarray:
        """Return the first ``num_tokens`` tokens of each row that is long enough, in order: int32 [M, num_tokens].

        ``whole``: return all consecutive, non-overlapping windows of each row; a shorter remainder is dropped.
        """
        counts = self.lengths[rows] // num_tokens
        if not whole:
            counts = np.minimum(counts, 1)
        pieces = np.concatenate([np.arange(count) for count in counts]) if len(rows) else np.empty(0, np.int64)
        starts = np.repeat(self.offsets[rows], counts) + pieces * num_tokens
        return self.values[starts[:, None] + np.arange(num_tokens)]


def tokenize_once(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, cache_folder: Path) -> TokenizedTexts:
    """Tokenise texts, or load them from the cache. No special tokens are added, and spelled ones are encoded as text.

    The cache file is Parquet with one column ``token_ids`` (list<int32>), named by a hash of the format, the
    tokenizer's JSON and the texts. Raises ``UserError`` if the tokenizer has no fast implementation.
    """
    fast = fast_copy(tokenizer)
    key = content_hash([FORMAT, fast.to_str(), *texts])
    path = cache_folder / f"tokens-{key[:32]}.parquet"
    if not path.exists():
        encodings = fast.encode_batch_fast(list(texts), add_special_tokens=False)
        table = pa.table({"token_ids": pa.array([encoding.ids for encoding in encodings], pa.list_(pa.int32()))})
        write_atomically(path, lambda temporary: pa.parquet.write_table(table, temporary, compression="zstd"))
    column = pa.parquet.read_table(path)["token_ids"].combine_chunks()
    assert len(column) == len(texts), f"{path} has {len(column)} rows for {len(texts)} texts"
    return TokenizedTexts(column.values.to_numpy(), column.offsets.to_numpy().astype(np.int64))
