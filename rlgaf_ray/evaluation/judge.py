"""An independent sentiment judge: TF-IDF and logistic regression, trained on reviews that the reward never sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sklearn
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from rlgaf_ray.data.cache import content_hash, write_atomically

HELD_OUT_SHARE = 0.15
SEED = 0
# Part of the cache key: change it whenever the same texts would give a different judge.
FORMAT = "judge 1"


class SentimentJudge:
    """A linear classifier over word 1- and 2-grams; create it with ``fit`` or ``load``.

    ``accuracy`` and ``accuracy_window`` are measured on held-out reviews, as full texts and as windows with about as
    many words as a generated text.
    """

    def __init__(
        self,
        vectorizer: TfidfVectorizer,
        coefficients: np.ndarray,
        intercept: float,
        *,
        accuracy: float,
        accuracy_window: float,
    ) -> None:
        self._vectorizer = vectorizer
        self._coefficients = coefficients
        self._intercept = intercept
        self.accuracy = accuracy
        self.accuracy_window = accuracy_window

    @classmethod
    def fit(cls, texts: Sequence[str], labels: np.ndarray, window_words: int = 24) -> SentimentJudge:
        """Train on 85 % of the reviews, as full texts and windows; measure accuracy on the other 15 %.

        The split is by review, so no window of a held-out review is trained on. ``labels``: 1 = positive.
        """
        train, held_out = train_test_split(
            np.arange(len(texts)), test_size=HELD_OUT_SHARE, stratify=labels, random_state=SEED
        )
        held_out_texts = [texts[row] for row in held_out]
        train_texts = [texts[row] for row in train]
        pieces, owners = windows(train_texts, window_words)
        vectorizer = _vectorizer()
        features = vectorizer.fit_transform(train_texts + pieces)
        model = LogisticRegression(max_iter=200).fit(features, np.concatenate([labels[train], labels[train][owners]]))
        judge = cls(vectorizer, model.coef_[0], float(model.intercept_[0]), accuracy=0.0, accuracy_window=0.0)
        judge.accuracy = judge._accuracy(held_out_texts, labels[held_out])
        held_out_pieces, owners = windows(held_out_texts, window_words)
        judge.accuracy_window = judge._accuracy(held_out_pieces, labels[held_out][owners])
        return judge

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the log odds of positive, float64 [N]."""
        return self._vectorizer.transform(texts) @ self._coefficients + self._intercept

    def save(self, path: Path) -> None:
        """Write plain arrays (npz without pickle) atomically."""
        terms = "\n".join(self._vectorizer.get_feature_names_out())
        write_atomically(
            path,
            lambda temporary: np.savez_compressed(
                temporary,
                terms=np.frombuffer(terms.encode(), np.uint8),
                inverse_document_frequency=self._vectorizer.idf_,
                coefficients=self._coefficients,
                numbers=np.array([self._intercept, self.accuracy, self.accuracy_window]),
            ),
        )

    @classmethod
    def load(cls, path: Path) -> SentimentJudge:
        """Read what ``save`` wrote; scores are bit-identical."""
        with np.load(path, allow_pickle=False) as arrays:
            terms = arrays["terms"].tobytes().decode().split("\n")
            vectorizer = _vectorizer(vocabulary={term: column for column, term in enumerate(terms)})
            vectorizer.idf_ = arrays["inverse_document_frequency"]
            intercept, accuracy, accuracy_window = arrays["numbers"].tolist()
            return cls(
                vectorizer, arrays["coefficients"], intercept, accuracy=accuracy, accuracy_window=accuracy_window
            )

    def _accuracy(self, texts: Sequence[str], labels: np.ndarray) -> float:
        return float(((self.scores(texts) > 0) == (labels == 1)).mean())


def prepare_judge(
    texts: Sequence[str], labels: np.ndarray, cache_folder: Path, window_words: int = 24
) -> SentimentJudge:
    """Fit a judge, or load it from the cache if fitted on the same reviews with the same scikit-learn."""
    settings = f"{FORMAT} {sklearn.__version__} {window_words} {HELD_OUT_SHARE} {SEED}"
    key = content_hash([settings, *(f"{label} {text}" for label, text in zip(labels, texts, strict=True))])
    path = cache_folder / f"judge-{key[:32]}.npz"
    if not path.exists():
        SentimentJudge.fit(texts, labels, window_words).save(path)
    return SentimentJudge.load(path)


def _vectorizer(vocabulary: dict[str, int] | None = None) -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), max_features=100_000, sublinear_tf=True, vocabulary=vocabulary)


def windows(texts: Sequence[str], num_words: int) -> tuple[list[str], np.ndarray]:
    """Split texts into consecutive full windows (a shorter text is one window); also return each window's text row."""
    pieces: list[str] = []
    owners: list[int] = []
    for row, text in enumerate(texts):
        words = text.split()
        starts = range(0, max(1, len(words) - num_words + 1), num_words)
        pieces.extend(" ".join(words[start : start + num_words]) for start in starts)
        owners.extend([row] * len(starts))
    return pieces, np.array(owners)
