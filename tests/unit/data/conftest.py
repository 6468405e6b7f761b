from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

WORDS = [
    "the",
    "film",
    "was",
    "a",
    "good",
    "bad",
    "long",
    "short",
    "and",
    "very",
    "quiet",
    "loud",
    "story",
    "of",
    "two",
    "old",
    "friends",
    "in",
    "Rome",
]


def make_texts(count: int) -> list[str]:
    """Distinct texts of 4 to 18 words."""
    return [
        " ".join(WORDS[(row * 7 + place * (row + 3)) % len(WORDS)] for place in range(4 + row % 15)) + f" {row}"
        for row in range(count)
    ]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(make_texts(100), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return make_texts(120)
