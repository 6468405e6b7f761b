"""Text metrics without a language model: diversity, degeneration and VADER sentiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from sacrebleu.metrics import BLEU
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from rlgaf_ray.types import MIN_TEXTS, Demonstration, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# VADER's authors: positive for a compound score >= 0.05, negative for <= -0.05.
VADER_THRESHOLD = 0.05


def decode(token_ids: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Decode each row to text, without special tokens."""
    return tokenizer.batch_decode(
        [row.tolist() for row in token_ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def full_texts(items: Sequence[Demonstration | Rollout], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Decode prompt and response of each item as one text."""
    return decode([np.concatenate([item.prompt_ids, item.response_ids]) for item in items], tokenizer)


def distinct_n(token_id_sequences: Sequence[np.ndarray], n: int) -> float:
    """Return distinct n-grams divided by all n-grams of the corpus, 0 to 1 (Li et al. 2016, arXiv 1510.03055).

    It decreases with the number of tokens, so compare equal counts only. A corpus without n-grams gives 0.
    """
    grams = [gram for sequence in token_id_sequences for gram in _ngrams(sequence, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str], *, num_references: int = 100, seed: int = 0) -> float:
    """Return the mean BLEU-4 of each text against the others, 0 (all different) to 1 (all identical).

    Zhu et al. 2018 (Texygen, arXiv 1802.01886). Samples ``num_references`` + 1 texts with ``seed`` (all if there are
    fewer) and compares each with the rest of the sample. It increases with the number of references, so compare equal
    counts only. sacrebleu with ``13a`` tokenization, exponential smoothing and effective order.
    """
    assert len(texts) >= MIN_TEXTS, f"self-BLEU needs {MIN_TEXTS} texts"
    count = min(len(texts), num_references + 1)
    drawn = [texts[row] for row in np.random.default_rng(seed).permutation(len(texts))[:count]]
    metric = BLEU(effective_order=True)
    scores = [metric.sentence_score(text, drawn[:row] + drawn[row + 1 :]).score for row, text in enumerate(drawn)]
    return float(np.mean(scores)) / 100


def degenerate_share(token_sequences: Sequence[np.ndarray]) -> float:
    """Return the share of empty or repetitive responses, by any of three criteria.

    - fewer than 2 tokens (a single end-of-text token counts as empty)
    - the same token 5 times in a row ("very very very very very"), which occurs in 3 of 10,000 real reviews
    - more than half of the 4-grams occurred before in the same response (seq-rep-4 of Welleck et al. 2020, arXiv
      1908.04319, above 0.5): in 28 tokens, any loop of up to 12 tokens that lasts to the end
    """
    return float(np.mean([_is_degenerate(np.asarray(sequence)) for sequence in token_sequences]))


def vader_labels(texts: Sequence[str]) -> np.ndarray:
    """Label each text 1, 0 or -1 for a VADER score (Hutto & Gilbert 2014) >= 0.05, in between, or <= -0.05."""
    analyzer = SentimentIntensityAnalyzer()
    scores = np.array([analyzer.polarity_scores(text)["compound"] for text in texts])
    return (scores >= VADER_THRESHOLD).astype(int) - (scores <= -VADER_THRESHOLD).astype(int)


def _ngrams(sequence: np.ndarray, n: int) -> list[tuple[int, ...]]:
    tokens = np.asarray(sequence).tolist()
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def _is_degenerate(tokens: np.ndarray, *, longest_run: int = 5) -> bool:
    if len(tokens) < 2:
        return True
    changes = np.flatnonzero(np.diff(tokens))
    runs = np.diff(np.concatenate([[-1], changes, [len(tokens) - 1]]))
    grams = _ngrams(tokens, 4)
    return bool(runs.max() >= longest_run or len(grams) - len(set(grams)) > len(grams) / 2)
