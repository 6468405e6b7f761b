"""Tokenizers: train a byte-level BPE on the task's text, or load a model's tokenizer."""

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
    """Train a byte-level BPE tokenizer like GPT-2's (Radford et al. 2019); end of text is token 0."""
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
    """Wrap as a transformers tokenizer; end of text is also the BOS and padding token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer from a folder or hub id. The padding token defaults to end of text.

    Raises ``UserError`` if the tokenizer cannot be read or has no end-of-text token.
    """
    with reading(f"the tokenizer of {source}"):
        tokenizer = AutoTokenizer.from_pretrained(
            model_source(source),
            trust_remote_code=trust_remote_code,
            mistral_format=False,  # else it prefers tekken.json to tokenizer.json if mistral_common is installed
        )
        # Use it once: settings of wrong types load silently and fail only in use.
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
