"""A second sentiment judge: logistic regression on frozen sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from rlgaf_ray.data.cache import content_hash, write_atomically
from rlgaf_ray.evaluation.embeddings import SHA256, Encode
from rlgaf_ray.evaluation.judge import HELD_OUT_SHARE, SEED, windows

MAX_WINDOWS = 5000  # embedding them takes 45 s on one slow core; twice as many raise the accuracy by 0.01
# Part of the cache key: change it whenever the same texts would give a different judge.
FORMAT = "embedding judge 1"


class EmbeddingJudge:
    """A linear classifier over sentence embeddings; create it with ``fit`` or ``load``.

    ``accuracy_window`` is its accuracy on windows of held-out reviews, each as long as a generated text.
    """

    def __init__(self, encode: Encode, coefficients: np.ndarray, intercept: float, *, accuracy_window: float) -> None:
        self._encode = encode
        self._coefficients = coefficients
        self._intercept = intercept
        self.accuracy_window = accuracy_window

    @classmethod
    def fit(
        cls,
        encode: Encode,
        texts: Sequence[str],
        labels: np.ndarray,
        window_words: int = 24,
        max_windows: int = MAX_WINDOWS,
    ) -> EmbeddingJudge:
        """Sample ``max_windows`` windows; train on those of 85 % of the reviews, measure accuracy on the others.

        The split is by review, so no window of a held-out review is trained on. ``labels``: 1 = positive.
        """
        pieces, owners = windows(texts, window_words)
        chosen = np.random.default_rng(SEED).permutation(len(pieces))[:max_windows]
        _, held_out = train_test_split(
            np.arange(len(texts)), test_size=HELD_OUT_SHARE, stratify=labels, random_state=SEED
        )
        embeddings, wanted = encode([pieces[row] for row in chosen]), labels[owners[chosen]]
        test = np.isin(owners[chosen], held_out)
        model = LogisticRegression(max_iter=1000).fit(embeddings[~test], wanted[~test])
        judge = cls(encode, model.coef_[0], float(model.intercept_[0]), accuracy_window=0.0)
        judge.accuracy_window = float(((judge._log_odds(embeddings[test]) > 0) == (wanted[test] == 1)).mean())
        return judge

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the log odds of positive, float64 [N]."""
        return self._log_odds(self._encode(texts))

    def save(self, path: Path) -> None:
        """Write plain arrays (npz without pickle) atomically."""
        numbers = np.array([self._intercept, self.accuracy_window])
        write_atomically(path, lambda temporary: np.savez(temporary, coefficients=self._coefficients, numbers=numbers))

    @classmethod
    def load(cls, path: Path, encode: Encode) -> EmbeddingJudge:
        """Read what ``save`` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            intercept, accuracy_window = arrays["numbers"].tolist()
            return cls(encode, arrays["coefficients"], intercept, accuracy_window=accuracy_window)

    def _log_odds(self, embeddings: np.ndarray) -> np.ndarray:
        return embeddings.astype(np.float64) @ self._coefficients + self._intercept


def prepare_embedding_judge(
    encode: Encode, texts: Sequence[str], labels: np.ndarray, cache_folder: Path, window_words: int = 24
) -> EmbeddingJudge:
    """Fit a judge, or load it from the cache if fitted on the same reviews with the same encoder and scikit-learn."""
    settings = f"{FORMAT} {SHA256} {sklearn.__version__} {window_words} {MAX_WINDOWS} {HELD_OUT_SHARE} {SEED}"
    key = content_hash([settings, *(f"{label} {text}" for label, text in zip(labels, texts, strict=True))])
    path = cache_folder / f"embedding-judge-{key[:32]}.npz"
    if not path.exists():
        EmbeddingJudge.fit(encode, texts, labels, window_words).save(path)
    return EmbeddingJudge.load(path, encode)
