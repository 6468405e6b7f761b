"""Distance between generated and real text: classifier two-sample tests, and copying from demonstrations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold

from rlgaf_ray.types import MIN_TEXTS

FOLDS = 5
NGRAM = 8  # tokens of a copied n-gram; real reviews share few that long

Features = Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]
"""Maps training and test rows to feature matrices, fitted on the training rows."""


@dataclass(frozen=True, slots=True)
class TwoSample:
    """Out-of-fold ``accuracy`` and ``auc`` of real versus generated; 0.5 means indistinguishable."""

    accuracy: float
    auc: float
    auc_stderr: float


def two_sample_texts(real: Sequence[str], generated: Sequence[str], seed: int = 0) -> TwoSample:
    """Run the two-sample test on TF-IDF of words and punctuation (1-2 grams); see ``_two_sample``."""
    return _two_sample(np.array([*real, *generated], dtype=object), _word_features, seed)


def two_sample_embeddings(real: np.ndarray, generated: np.ndarray, seed: int = 0) -> TwoSample:
    """Run the two-sample test on embeddings, float [N, dimensions] each; see ``_two_sample``."""
    assert len(real) == len(generated)
    return _two_sample(np.concatenate([real, generated]), lambda train, test: (train, test), seed)


def _two_sample(values: np.ndarray, features: Features, seed: int) -> TwoSample:
    """Run a classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv 1610.06545): logistic regression, five folds.

    ``values`` [2N, ...]: N real rows, then N generated rows; row i of both halves answers the same prompt. Folds split
    the prompts, so each is half real and no prompt is in both training and test set, which would push the accuracy
    below chance. The AUC is averaged over folds: comparing scores of different classifiers would push it below chance
    too.
    """
    num_rows, odd = divmod(len(values), 2)
    assert not odd and num_rows >= MIN_TEXTS, f"the two-sample test needs equal counts of at least {MIN_TEXTS}"
    labels = np.repeat([1, 0], num_rows)
    log_odds, aucs = np.empty(2 * num_rows), []
    for train, test in KFold(FOLDS, shuffle=True, random_state=seed).split(np.arange(num_rows)):
        train, test = np.concatenate([train, train + num_rows]), np.concatenate([test, test + num_rows])
        train_features, test_features = features(values[train], values[test])
        model = LogisticRegression(max_iter=1000).fit(train_features, labels[train])
        log_odds[test] = model.decision_function(test_features)
        aucs.append(roc_auc_score(labels[test], log_odds[test]))
    auc = float(np.mean(aucs))
    return TwoSample(float(((log_odds > 0) == labels).mean()), auc, auc_stderr(auc, num_rows))


def auc_stderr(auc: float, num_rows: int) -> float:
    """Return the standard error of an AUC of ``num_rows`` rows per class (Hanley & McNeil 1982, equation 2)."""
    two_real, two_generated = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (num_rows - 1) * (two_real + two_generated - 2 * auc**2)
    return math.sqrt(max(0.0, spread)) / num_rows


def _word_features(train: np.ndarray, test: np.ndarray) -> tuple[Any, Any]:
    # N-grams of a single text are uninformative and would dominate each text's norm, hence min_df=2.
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    try:
        return words.fit_transform(train), words.transform(test)
    except ValueError:  # no n-gram occurs in two texts: constant features
        return np.zeros((len(train), 1)), np.zeros((len(test), 1))


class Copying:
    """Finds token 8-grams of the demonstrations' responses in other responses.

    N-grams are compared by a 64-bit hash, the sum of their tokens times fixed random odd numbers.
    """

    def __init__(self, demonstrations: Sequence[np.ndarray]) -> None:
        self._factors = np.random.default_rng(0).integers(0, 2**64, NGRAM, dtype=np.uint64) | np.uint64(1)
        self._known = np.unique(self._hashes(demonstrations))

    def share(self, responses: Sequence[np.ndarray]) -> float:
        """Return the share of the responses' 8-grams found in a demonstration, 0 to 1; 0 if none has eight tokens."""
        hashes = self._hashes(responses)
        return float(np.isin(hashes, self._known).mean()) if len(hashes) else 0.0

    def _hashes(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        long_enough = [np.asarray(ids) for ids in sequences if len(ids) >= NGRAM]
        hashed = [sliding_window_view(ids.astype(np.uint64), NGRAM) @ self._factors for ids in long_enough]
        return np.concatenate(hashed) if hashed else np.empty(0, np.uint64)
