from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from rlgaf_ray.models.tokenizer import train_bpe, wrap_bpe

WORDS = [
    *("the", "film", "was", "a", "good", "bad", "long", "short", "and", "very", "quiet", "loud", "story"),
    *("of", "two", "old", "friends", "in", "Rome"),
]


def make_texts(count: int) -> list[str]:
    """Return distinct texts of 5 to 19 words."""
    return [
        " ".join(WORDS[(row * 7 + place * (row + 3)) % len(WORDS)] for place in range(4 + row % 15)) + f" {row}"
        for row in range(count)
    ]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return wrap_bpe(train_bpe(make_texts(100), vocab_size=400))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return make_texts(120)
