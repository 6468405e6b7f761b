from __future__ import annotations

import numpy as np
import pytest

from rlgaf_ray.evaluation.text import degenerate_share, distinct_n, self_bleu, vader_labels


def arrays(*sequences: list[int]) -> list[np.ndarray]:
    return [np.array(sequence, np.int32) for sequence in sequences]


def test_distinct_by_hand() -> None:
    corpus = arrays([1, 2, 1, 2], [1, 2, 3])
    assert distinct_n(corpus, 1) == 3 / 7
    assert distinct_n(corpus, 2) == 3 / 5  # 12 21 12 | 12 23
    assert distinct_n(corpus, 3) == 3 / 3  # 121 212 | 123
    assert distinct_n(arrays([1], []), 2) == 0.0


def random_texts(count: int, num_words: int, seed: int, vocabulary: int = 500) -> list[str]:
    words = np.random.default_rng(seed).integers(0, vocabulary, (count, num_words))
    return [" ".join(f"w{word}" for word in row) for row in words]


def test_self_bleu_at_its_bounds_and_in_between() -> None:
    assert self_bleu(["the same old story told again"] * 12) == pytest.approx(1.0)
    apart = [" ".join(f"w{row}x{place}" for place in range(12)) for row in range(12)]
    assert self_bleu(apart) < 0.05
    half = ["the same old story told again"] * 6 + apart[:6]
    assert self_bleu(apart) < self_bleu(half) < 1.0


def test_self_bleu_of_one_text_is_sacrebleus_sentence_bleu() -> None:
    from sacrebleu import sentence_bleu

    texts = random_texts(10, 20, seed=1, vocabulary=12)
    expected = [sentence_bleu(text, [other for other in texts if other is not text]).score for text in texts]
    assert self_bleu(texts) == pytest.approx(np.mean(expected) / 100)


def test_self_bleu_samples_a_fixed_number_by_seed() -> None:
    texts = random_texts(60, 15, seed=2, vocabulary=20)
    first = self_bleu(texts, num_references=20, seed=4)
    assert first == self_bleu(texts, num_references=20, seed=4)
    assert first != self_bleu(texts, num_references=20, seed=5)
    assert first < self_bleu(texts, num_references=59)  # more references, more matches


def test_degenerate_responses_one_by_one() -> None:
    fine = list(range(28))
    loop_of_12 = [*range(100, 112)] * 2 + [100, 101, 102, 103]  # 25 4-grams, 12 of them distinct: 13 repeat
    loop_of_13 = [*range(100, 113)] * 2 + [100, 101]  # 13 distinct: 12 repeat, not more than half
    cases = [
        ([], True),
        ([7], True),
        ([7, 7], False),
        (fine, False),
        ([*fine[:10], 5, 5, 5, 5, *fine[14:]], False),  # four in a row
        ([*fine[:10], 5, 5, 5, 5, 5, *fine[15:]], True),  # five in a row
        ([*fine[:23], 5, 5, 5, 5, 5], True),  # at the end
        ([5, 5, 5, 5, 5, *fine[5:]], True),  # at the beginning
        (loop_of_12, True),
        (loop_of_13, False),
        ([1, 2] * 14, True),
    ]
    for sequence, expected in cases:
        assert degenerate_share(arrays(sequence)) == float(expected), sequence
    assert degenerate_share(arrays(*(sequence for sequence, _ in cases))) == pytest.approx(6 / 11 + 1 / 11)


def test_vader_labels_positive_negative_and_neutral() -> None:
    texts = ["What a great, lovely film!", "A horrible, ugly mess.", "The table has four legs.", "I love it."]
    assert vader_labels(texts).tolist() == [1, -1, 0, 1]
