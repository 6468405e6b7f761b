"""Encode texts to token ids. Only a chat template can write control tokens; in a text their spelling stays text."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from rlgaf_ray.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# Unicode noncharacters as markers; ``columns.check_encodable`` rejects rows that contain them.
WRITTEN, SPELLED, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
RESERVED = frozenset((WRITTEN, SPELLED, CLOSE))
CONTROL = re.compile(f"{WRITTEN}([0-9]+){CLOSE}")
_HIDDEN = re.compile(f"{SPELLED}([0-9]+){CLOSE}")
# Prefixes for encoding a continuation: some tokenizers add a space at the start of a text.
ANCHORS = ("\n", "a", ".", ")", "1", "\t")

Offsets = list[tuple[int, int]]


def fast_copy(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Copy the tokenizer's fast implementation, set to encode the spelling of special tokens as text.

    Raises ``UserError`` if it has no fast implementation.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer: give a model folder with tokenizer.json")
    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True
    return fast


class Encoder:
    """A tokenizer that distinguishes a template's control tokens from text that spells them.

    ``sealed`` replaces each control token that the template wrote by an alias. The encoding methods accept both sealed
    and plain texts.

    Args:
        ends: token ids that end a rollout; they are control tokens even if the tokenizer does not mark them special.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = ()) -> None:
        from tokenizers import AddedToken

        self._fast = fast_copy(tokenizer)
        added = dict(sorted(tokenizer.added_tokens_decoder.items()))
        added = {each: token for each, token in added.items() if token.special or each in ends or _marks(token.content)}
        self.special = {token_id for token_id, token in added.items() if token.special or token_id in ends}
        self._fast.add_special_tokens([AddedToken(added[each].content, special=True) for each in self.special])
        self._ids = {token.content: token_id for token_id, token in added.items()}
        self._contents = {token_id: token.content for token_id, token in added.items()}
        aliases = {token_id: f"{WRITTEN}{token_id}{CLOSE}" for token_id in added}
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        self._fast.add_tokens(
            [
                AddedToken(aliases[each], **{flag: getattr(token, flag) for flag in flags})
                for each, token in added.items()
            ]
        )
        # id of an alias in the copy -> id of its token
        self._real = {self._fast.token_to_id(alias): token_id for token_id, alias in aliases.items()}
        self._any = _pattern(self._ids)
        self._special = _pattern(self._contents[each] for each in self.special)
        self.bos = _leading(tokenizer)
        """Ids that the tokenizer adds before a text, such as BOS."""

    def spells_control(self, text: str) -> bool:
        return self._special is not None and self._special.search(text) is not None

    def hidden(self, text: str) -> str:
        """Mark the special tokens that a text spells as text, before it goes through a template."""
        return _substituted(self._special, lambda found: f"{SPELLED}{self._ids[found]}{CLOSE}", text)

    def sealed(self, rendered: str) -> str:
        """Replace control tokens in a template's output by aliases; restore the spellings that ``hidden`` marked."""
        written = _substituted(self._any, lambda found: f"{WRITTEN}{self._ids[found]}{CLOSE}", rendered)
        return _HIDDEN.sub(lambda match: self._contents[int(match[1])], written)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids, without the special tokens that the tokenizer would add."""
        encoded = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[self._real.get(each, each) for each in item.ids] for item in encoded]

    def with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], Offsets]]:
        """Return ids and character offsets (start, end) of texts that continue another text."""
        anchor, count = self._anchor(texts)
        encoded = self._fast.encode_batch([anchor + text for text in texts], add_special_tokens=False)
        shift = len(anchor)
        return [
            (
                [self._real.get(each, each) for each in item.ids[count:]],
                [(max(0, left - shift), right - shift) for left, right in item.offsets[count:]],
            )
            for item in encoded
        ]

    def continued(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids of texts that continue another text, without the space that some tokenizers add first."""
        return [ids for ids, _ in self.with_offsets(texts)]

    def joined(self, prompts: Sequence[str], rests: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Return the ids of each prompt and of its continuation.

        The continuation's ids are those of the joined text if that begins with the prompt's ids.
        """
        first = self(prompts)
        full = self([prompt + rest for prompt, rest in zip(prompts, rests, strict=True)])
        kept = [ids[: len(before)] == before for before, ids in zip(first, full, strict=True)]
        alone = iter(self.continued([rest for rest, keeps in zip(rests, kept, strict=True) if not keeps]))
        return [
            (before, ids[len(before) :] if keeps else next(alone))
            for before, ids, keeps in zip(first, full, kept, strict=True)
        ]

    def _anchor(self, texts: Sequence[str]) -> tuple[str, int]:
        """Return a prefix that merges with the start of no text, and its number of tokens; ("", 0) if there is none."""
        heads = list({text[:12] for text in texts})
        for anchor in ANCHORS:
            (alone,) = self([anchor])
            if all(ids[: len(alone)] == alone for ids in self([anchor + head for head in heads])):
                return anchor, len(alone)
        return "", 0


def _marks(content: str) -> bool:
    """Return whether a non-special added token looks like a template's tag, such as ``<think>``."""
    return len(content) > 2 and content[0] in "<[" and content[-1] in ">]" and not content[1].isspace()


def _pattern(contents: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that matches any of the contents, the longest first; None if there are none."""
    found = sorted(contents, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None


def _substituted(pattern: re.Pattern[str] | None, replace: Callable[[str], str], text: str) -> str:
    return text if pattern is None else pattern.sub(lambda match: replace(match[0]), text)


def _leading(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    start = next((row for row in range(len(ids) - len(bare) + 1) if ids[row : row + len(bare)] == bare), 0)
    return list(ids[:start])
