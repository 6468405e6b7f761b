from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.model_selection import KFold

from rlgaf_ray.evaluation.distance import Copying, auc_stderr, two_sample_embeddings, two_sample_texts
from rlgaf_ray.evaluation.text import self_bleu


def random_texts(count: int, num_words: int, seed: int, vocabulary: int = 500) -> list[str]:
    words = np.random.default_rng(seed).integers(0, vocabulary, (count, num_words))
    return [" ".join(f"w{word}" for word in row) for row in words]


def test_two_samples_from_one_source_are_indistinguishable() -> None:
    accuracy = two_sample_texts(random_texts(300, 12, seed=1), random_texts(300, 12, seed=2)).accuracy
    assert abs(accuracy - 0.5) < 3 * np.sqrt(0.25 / 600)


@pytest.mark.parametrize(
    ("real", "generated"),
    [
        ([str(100 + row) for row in range(20)], [""] * 20),
        ([str(100 + row) for row in range(20)], [str(200 + row) for row in range(20)]),
        ([""] * 20, [""] * 20),
        ([chr(0x4E00 + row) * 3 for row in range(20)], [chr(0x5E00 + row) * 3 for row in range(20)]),
        (["\U0001f600 \u200d"] * 20, [" \n\t"] * 20),
    ],
)
def test_texts_without_a_shared_word_are_measured(real: list[str], generated: list[str]) -> None:
    """Short unique answers, scripts without spaces, and a generator that collapsed to empty answers."""
    found = two_sample_texts(real, generated)
    if real[0] != real[1] or real == generated:
        assert (found.accuracy, found.auc) == (0.5, 0.5)
    assert 0 < found.auc_stderr < 0.2 or found.auc == 1
    assert 0 <= self_bleu(generated) <= 1


def test_two_samples_with_a_marker_word_are_separated() -> None:
    real = random_texts(300, 12, seed=1)
    assert two_sample_texts(real, [f"{text} !" for text in random_texts(300, 12, seed=2)]).accuracy > 0.9


def test_shared_prompts_do_not_push_the_accuracy_below_chance() -> None:
    prompts = [f"p{row // 2} q{row // 2} r{row // 2}" for row in range(200)]
    real, generated = (
        [f"{prompt} {text}" for prompt, text in zip(prompts, random_texts(200, 2, seed, vocabulary=3), strict=True)]
        for seed in (1, 2)
    )
    assert two_sample_texts(real, generated).accuracy > 0.45
    # Unaligned, a prompt in one class of the test set was more often in the other class in training.
    assert two_sample_texts(real, generated[2:] + generated[:2]).accuracy < 0.4


def test_the_auc_averages_the_ranked_pairs_of_each_fold() -> None:
    """In one dimension the classifier is monotonic, so pairs can be counted directly."""
    generator = np.random.default_rng(0)
    real, generated = generator.integers(1, 6, (50, 1)) * 1.0, generator.integers(0, 5, (50, 1)) * 1.0
    shares = []
    for _, fold in KFold(5, shuffle=True, random_state=0).split(np.arange(50)):
        pairs = [(1.0 if r > g else 0.5 if r == g else 0.0) for r in real[fold, 0] for g in generated[fold, 0]]
        shares.append(np.mean(pairs))
    found = two_sample_embeddings(real, generated)
    assert 0.6 < found.auc < 0.9
    assert found.auc == pytest.approx(np.mean(shares))


def test_auc_and_accuracy_at_chance_and_at_perfect_separation() -> None:
    noise = np.random.default_rng(0).normal(size=(600, 4))
    chance = two_sample_embeddings(noise[:300], noise[300:])
    assert abs(chance.auc - 0.5) < 3 * chance.auc_stderr
    apart = two_sample_embeddings(noise[:300] + 9, noise[300:] - 9)
    assert (apart.accuracy, apart.auc, apart.auc_stderr) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("real", "generated"),
    [
        (["the same"] * 20, ["the same"] * 20),
        ([""] * 20, [""] * 20),  # no words
        ([f"r{row}" for row in range(20)], [f"g{row}" for row in range(20)]),  # no word occurs in two texts
    ],
)
def test_texts_without_common_words_give_chance(real: list[str], generated: list[str]) -> None:
    found = two_sample_texts(real, generated)
    assert (found.accuracy, found.auc) == (0.5, 0.5)


def test_standard_error_of_an_auc_by_hand() -> None:
    # At 0.5: Q1 = Q2 = 1/3, so (0.25 + (n - 1) * 2 * (1/3 - 1/4)) / n^2 = (0.25 + (n - 1) / 6) / n^2.
    assert auc_stderr(0.5, 100) == pytest.approx(math.sqrt((0.25 + 99 / 6) / 100**2))
    # At 0.8: Q1 = 0.8 / 1.2 = 2/3, Q2 = 1.28 / 1.8 = 0.7111.
    assert auc_stderr(0.8, 50) == pytest.approx(math.sqrt((0.16 + 49 * (2 / 3 + 1.28 / 1.8 - 1.28)) / 50**2))
    assert auc_stderr(1.0, 50) == 0.0


def test_copied_8_grams_by_hand() -> None:
    copying = Copying([np.arange(10), np.array([50, 51], np.int32)])  # 0-7, 1-8, 2-9; the second has none
    assert copying.share([np.arange(10)]) == 1.0
    assert copying.share([np.arange(1, 12)]) == 2 / 4  # 1-8, 2-9 | 3-10, 4-11
    assert copying.share([np.arange(1, 9), np.arange(20, 28), np.arange(3)]) == 1 / 2
    assert copying.share([np.arange(8)[::-1]]) == 0.0  # order matters
    assert copying.share([np.arange(7), np.array([], np.int32)]) == 0.0
    assert Copying([]).share([np.arange(9)]) == 0.0


def test_copied_8_grams_match_sets_of_tuples() -> None:
    generator = np.random.default_rng(3)
    demonstrations, responses = ([row.astype(np.int32) for row in generator.integers(0, 2, (40, 15))] for _ in range(2))

    def grams(rows: list[np.ndarray]) -> list[tuple[int, ...]]:
        return [tuple(row[start : start + 8].tolist()) for row in rows for start in range(len(row) - 7)]

    known = set(grams(demonstrations))
    expected = np.mean([gram in known for gram in grams(responses)])
    assert 0 < expected < 1
    assert Copying(demonstrations).share(responses) == pytest.approx(expected)
