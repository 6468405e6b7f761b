"""The tokenizers: a byte-level BPE trained on the task's own text, or the one that comes with a model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlgaf_ray.errors import UserError
from rlgaf_ray.models.built_in import model_source
from rlgaf_ray.models.folder import reading

END_OF_TEXT = "<|endoftext|>"


def train_bpe(texts: Iterable[str], vocab_size: int = 4096) -> Tokenizer:
    """Train GPT-2's kind of tokenizer (byte-level BPE, Radford et al. 2019); end of text is token 0."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


def wrap_bpe(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    """As a transformers tokenizer; end of text also begins and pads."""
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer from a folder or hub id; one without a padding token pads with end of text.

    Raises ``UserError`` for a model without a tokenizer, or a tokenizer without end-of-text.
    """
    with reading(f"the tokenizer of {source}"):
        tokenizer = AutoTokenizer.from_pretrained(model_source(source), trust_remote_code=trust_remote_code)
        # Settings of wrong types are read without a word, and fail where they are used.
        tokenizer.decode(tokenizer("a text")["input_ids"], skip_special_tokens=True)
        given = [token for token in (tokenizer.eos_token, tokenizer.pad_token) if token is not None]
        tokenizer.convert_tokens_to_ids(given)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {source} has no end-of-text token: set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
