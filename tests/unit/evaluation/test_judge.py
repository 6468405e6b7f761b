from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rlgaf_ray.evaluation import judge as judge_module
from rlgaf_ray.evaluation.judge import SentimentJudge, prepare_judge

NEUTRAL = ["film", "story", "actor", "scene", "music", "plot", "camera", "end", "city", "night"]
OPINION = (("awful", "dull", "poor", "boring"), ("lovely", "great", "fine", "superb"))


def make_reviews(count: int = 120, num_words: int = 30) -> tuple[list[str], np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    texts = []
    for label in labels:
        words = generator.choice(NEUTRAL, num_words)
        words[::6] = generator.choice(OPINION[label], len(words[::6]))
        texts.append(" ".join(words))
    return texts, labels


@pytest.fixture(scope="module")
def judge() -> SentimentJudge:
    return SentimentJudge.fit(*make_reviews(), window_words=12)


def test_the_judge_learns_from_words(judge: SentimentJudge) -> None:
    assert judge.accuracy == 1.0
    assert judge.accuracy_window == 1.0
    texts = ["a lovely film", "an awful film", "a superb story", "great music"]
    assert (judge.scores(texts) > 0).tolist() == [True, False, True, True]


def test_random_labels_give_chance_accuracy() -> None:
    texts, _ = make_reviews(400)
    labels = np.random.default_rng(1).integers(0, 2, 400)
    judge = SentimentJudge.fit(texts, labels, window_words=12)
    # 60 held-out reviews: one half +- three binomial standard errors.
    assert abs(judge.accuracy - 0.5) < 3 * np.sqrt(0.25 / 60)
    assert abs(judge.accuracy_window - 0.5) < 3 * np.sqrt(0.25 / 60)


def test_no_part_of_a_held_out_review_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"review{row} " + " ".join(f"word{row}x{place}" for place in range(29)) for row in range(100)]
    seen: list[str] = []
    make = judge_module._vectorizer

    def recording(**settings: dict[str, int]) -> object:
        vectorizer = make(**settings)
        fit = vectorizer.fit_transform

        def fit_transform(documents: Sequence[str]) -> object:
            seen.extend(documents)
            return fit(documents)

        vectorizer.fit_transform = fit_transform
        return vectorizer

    monkeypatch.setattr(judge_module, "_vectorizer", recording)
    SentimentJudge.fit(texts, np.arange(100) % 2, window_words=12)
    whole = [document for document in seen if document in texts]
    assert len(whole) == 85
    windows = [document for document in seen if document not in texts]
    assert len(windows) == 85 * 2  # 30 words: two full windows of 12
    owners = {document.split("x")[0].split()[0].removeprefix("review").removeprefix("word") for document in windows}
    assert owners == {document.split()[0].removeprefix("review") for document in whole}


def test_windows_are_full_and_consecutive() -> None:
    windows, owners = judge_module.windows(["a b c d e", "f", "g h i j"], 2)
    assert windows == ["a b", "c d", "f", "g h", "i j"]
    assert owners.tolist() == [0, 0, 1, 2, 2]


def test_a_saved_judge_has_bit_identical_scores(judge: SentimentJudge, tmp_path: Path) -> None:
    path = tmp_path / "judge.npz"
    judge.save(path)
    loaded = SentimentJudge.load(path)
    texts, _ = make_reviews(40, num_words=17)
    texts += ["", "unseen words only", "lovely 日本語"]
    np.testing.assert_array_equal(loaded.scores(texts), judge.scores(texts))
    assert (loaded.accuracy, loaded.accuracy_window) == (judge.accuracy, judge.accuracy_window)
    with np.load(path, allow_pickle=False) as arrays:
        assert {array.dtype.kind for array in arrays.values()} <= {"f", "u"}


def test_prepare_fits_once_for_the_same_reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, labels = make_reviews()
    first = prepare_judge(texts, labels, tmp_path, window_words=12)

    def fit_again(*_: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(SentimentJudge, "fit", fit_again)
    second = prepare_judge(texts, labels, tmp_path, window_words=12)
    np.testing.assert_array_equal(first.scores(texts), second.scores(texts))
    for other_texts, other_labels, words in ((texts, 1 - labels, 12), (texts[::-1], labels, 12), (texts, labels, 10)):
        with pytest.raises(AssertionError, match="fitted again"):
            prepare_judge(other_texts, other_labels, tmp_path, window_words=words)
