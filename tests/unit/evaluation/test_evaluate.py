from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.answers import AnswerMeasure
from rlgaf_ray.evaluation.embedding_judge import EmbeddingJudge
from rlgaf_ray.evaluation.embeddings import Encode
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.evaluation.judge import SentimentJudge
from rlgaf_ray.evaluation.score import WORST
from rlgaf_ray.evaluation.sentiment import SentimentMeasure, closeness, gap_closed
from rlgaf_ray.evaluation.text import full_texts
from rlgaf_ray.types import Demonstration

NUM_PROMPTS = 20
JUDGES = ("judge", "vader", "panel")
SURFACE = ("distinct_1", "distinct_2", "distinct_3", "self_bleu", "copied", "degenerate_share", "response_tokens")
NAMES = {
    *(f"{judge}_share{of}{what}" for judge in JUDGES for of in ("", "_real") for what in ("", "_stderr")),
    *("judge_share_sft", "gap_closed", "judge_accuracy", "judge_accuracy_window", "panel_gap", "closeness"),
    *("perplexity", "perplexity_real", "perplexity_ratio", "real_nll", "distinct_2_ratio"),
    *("two_sample_accuracy", "two_sample_auc", "two_sample_auc_stderr"),
    *(f"{name}{of}" for name in SURFACE for of in ("", "_real")),
}


def make_texts(num_positive: int) -> list[str]:
    """NUM_PROMPTS texts with different nouns, the first ones positive."""
    opinions = ["a great lovely"] * num_positive + ["an awful horrible"] * (NUM_PROMPTS - num_positive)
    return [f"it was {opinion} thing{row} thing{row + 1}" for row, opinion in enumerate(opinions)]


@pytest.fixture(scope="module")
def judge() -> SentimentJudge:
    texts = [f"{word} film {row}" for row in range(40) for word in ("great lovely", "awful horrible")]
    return SentimentJudge.fit(texts, np.tile([1, 0], 40), window_words=3)


def evaluator_of(
    judge: SentimentJudge,
    num_positive: int,
    wanted: int | np.ndarray = 1,
    embedding_judge: EmbeddingJudge | None = None,
    encode: Encode | None = None,
) -> Evaluator:
    real = make_texts(num_positive)
    measure = SentimentMeasure(judge, real, np.broadcast_to(wanted, NUM_PROMPTS), embedding_judge)
    demonstrations = [np.arange(8) + 10 * row for row in range(5)]
    return Evaluator(measure, responses(20), real, demonstrations=demonstrations, encode=encode)


def responses(num_distinct: int) -> list[np.ndarray]:
    """NUM_PROMPTS responses of eight tokens; the given number of them have distinct tokens."""
    return [np.arange(8) + 10 * min(row, num_distinct - 1) for row in range(NUM_PROMPTS)]


def test_gap_closed() -> None:
    assert gap_closed(0.473, 0.473, 0.755) == 0.0
    assert gap_closed(0.755, 0.473, 0.755) == 1.0
    assert gap_closed(0.715, 0.473, 0.755) == pytest.approx(0.858, abs=1e-3)
    assert gap_closed(0.4, 0.5, 0.7) == pytest.approx(-0.5)
    assert gap_closed(0.6, 0.5, 0.5) == 0.0


def test_all_metrics_of_a_run(judge: SentimentJudge) -> None:
    evaluator = evaluator_of(judge, 16)
    start = evaluator(responses(20), make_texts(8), sample_nll=math.log(140), real_nll=4.5)
    assert {name.removeprefix("eval/") for name in start} == NAMES
    assert start["eval/judge_share"] == start["eval/judge_share_sft"] == 0.4
    assert start["eval/judge_share_stderr"] == pytest.approx(math.sqrt(0.4 * 0.6 / 20))
    assert start["eval/judge_share_real"] == start["eval/vader_share_real"] == 0.8
    assert start["eval/vader_share"] == 0.4
    assert start["eval/gap_closed"] == 0.0
    assert start["eval/perplexity"] == pytest.approx(140)
    assert start["eval/real_nll"] == 4.5
    assert start["eval/perplexity_ratio"] == start["eval/distinct_2_ratio"] == 1.0
    assert start["eval/distinct_2"] == 1.0
    assert start["eval/degenerate_share"] == 0.0
    assert start["eval/response_tokens"] == start["eval/response_tokens_real"] == 8.0
    assert start["eval/perplexity_real"] == pytest.approx(math.exp(4.5))
    assert start["eval/copied"] == start["eval/copied_real"] == 5 / 20
    assert start["eval/panel_share"] == 0.4 and start["eval/panel_gap"] == pytest.approx(0.4)
    assert start["eval/closeness"] == pytest.approx(-(start["eval/two_sample_auc"] - 0.5) - 0.4)

    later = evaluator(responses(10), make_texts(14), sample_nll=math.log(175), real_nll=4.6)
    assert later["eval/judge_share"] == 0.7
    assert later["eval/judge_share_sft"] == 0.4
    assert later["eval/gap_closed"] == pytest.approx(0.75)
    assert later["eval/perplexity_ratio"] == pytest.approx(1.25)
    assert later["eval/distinct_2"] == later["eval/distinct_2_ratio"] == 0.5
    assert later["eval/distinct_2_real"] == 1.0
    assert later["eval/perplexity_real"] == start["eval/perplexity_real"]  # under the SFT model, not the measured one
    assert later["eval/panel_gap"] == pytest.approx(0.1)


class Scripted:
    """A fake judge that labels the first texts of a list positive: ``real`` of the real texts, ``other`` of others."""

    accuracy = accuracy_window = 0.75

    def __init__(self, real: int, other: int) -> None:
        self.shares = [real, other]

    def scores(self, texts: list[str]) -> np.ndarray:
        count = self.shares.pop(0)
        return np.where(np.arange(len(texts)) < count, 1.0, -1.0)


def test_the_panel_averages_absolute_distances() -> None:
    """Linear judge 0.9 versus 0.7 on real text, VADER 0.4 versus 0.8, embeddings 0.75 versus 0.7."""
    judge, embedded = Scripted(14, 18), Scripted(14, 15)
    measure = SentimentMeasure(judge, make_texts(16), np.ones(NUM_PROMPTS, int), embedded)  # type: ignore[arg-type]
    metrics = measure(make_texts(8))
    assert metrics["eval/panel_gap"] == pytest.approx((0.2 + 0.4 + 0.05) / 3)
    assert metrics["eval/panel_share"] == pytest.approx((0.9 + 0.4 + 0.75) / 3)
    assert metrics["eval/panel_share_real"] == pytest.approx((0.7 + 0.8 + 0.7) / 3)
    assert metrics["eval/embedding_share_real_stderr"] == pytest.approx(math.sqrt(0.7 * 0.3 / 20))
    assert metrics["eval/embedding_accuracy_window"] == 0.75
    # 8 prompts have three judges, 7 two (without VADER), 3 one (the linear judge), 2 none.
    votes = [1.0] * 8 + [2 / 3] * 7 + [1 / 3] * 3 + [0.0] * 2
    assert metrics["eval/panel_share_stderr"] == pytest.approx(np.std(votes) / math.sqrt(20))
    assert measure.derived(metrics | {"eval/two_sample_auc": 0.7}) == {"eval/closeness": pytest.approx(-0.2 - 0.65 / 3)}
    compared = measure.compared(metrics, {"eval/judge_share": 0.5})
    assert compared["eval/gap_closed"] == pytest.approx(0.4 / 0.2)


def test_real_text_has_the_highest_closeness() -> None:
    assert closeness(0.5, 0.0) == 0.0
    assert closeness(0.7, 0.0) == pytest.approx(-0.2)
    assert closeness(0.5, 0.1) == pytest.approx(-0.1)
    assert closeness(1.0, 1.0) == WORST


def test_embeddings_add_a_judge_and_a_two_sample_test(judge: SentimentJudge) -> None:
    def encode(texts: Sequence[str]) -> np.ndarray:
        return np.array([[float("great" in text)] for text in texts], np.float32)

    embedded = EmbeddingJudge(encode, np.array([2.0]), -1.0, accuracy_window=0.6)
    evaluator = evaluator_of(judge, 20, embedding_judge=embedded, encode=encode)
    metrics = evaluator(responses(20), make_texts(0), sample_nll=1.0, real_nll=1.0)
    assert metrics["eval/embedding_share"] == 0.0 and metrics["eval/embedding_share_real"] == 1.0
    assert metrics["eval/embedding_two_sample_auc"] == 1.0
    assert metrics["eval/embedding_two_sample_auc_stderr"] == 0.0


def test_a_quick_evaluation_uses_the_first_prompts_and_no_baseline(judge: SentimentJudge) -> None:
    evaluator = evaluator_of(judge, 16)
    metrics = evaluator.quick(make_texts(8)[:10])
    assert set(metrics) == {"quick/judge_share", "quick/judge_share_real", "quick/two_sample_auc"}
    assert (metrics["quick/judge_share"], metrics["quick/judge_share_real"]) == (0.8, 1.0)
    assert evaluator.state_dict() == {}


def test_a_negative_target_mirrors_the_shares(judge: SentimentJudge) -> None:
    metrics = evaluator_of(judge, 4, wanted=0)(responses(20), make_texts(15), sample_nll=1.0, real_nll=1.0)
    assert metrics["eval/judge_share_real"] == metrics["eval/vader_share_real"] == 0.8
    assert metrics["eval/judge_share"] == metrics["eval/vader_share"] == 0.25


def test_with_both_sentiments_the_requested_one_counts(judge: SentimentJudge) -> None:
    wanted = np.repeat([1, 0], [12, 8])  # positive requested in the first 12
    metrics = evaluator_of(judge, 12, wanted)(responses(20), make_texts(15), sample_nll=1.0, real_nll=1.0)
    assert metrics["eval/judge_share_real"] == 1.0
    assert metrics["eval/judge_share"] == metrics["eval/vader_share"] == 17 / 20  # 12 and 5 of them
    assert metrics["eval/judge_share_asked_positive"] == 1.0
    assert metrics["eval/judge_share_asked_negative"] == 5 / 8


def test_answers_are_compared_with_the_sft_models() -> None:
    references = [("a b c",)] * NUM_PROMPTS
    measure = AnswerMeasure(references, [""] * NUM_PROMPTS, no_answer="none")
    evaluator = Evaluator(measure, responses(20), ["a b c"] * NUM_PROMPTS, demonstrations=[])
    start = evaluator(responses(20), [" a"] * NUM_PROMPTS, sample_nll=1.0, real_nll=1.0)
    assert (start["eval/length_distance"], start["eval/length_distance_ratio"]) == (2.0, 1.0)
    later = evaluator(responses(20), [" b c"] * 15 + [" none"] * 5, sample_nll=1.0, real_nll=1.0)
    assert later["eval/length_distance"] == pytest.approx(0.75 * 1 + 0.25 * 3)
    assert later["eval/length_distance_ratio"] == pytest.approx(0.75)
    assert later["eval/f1"] == pytest.approx(75)  # "a" is an article: it is ignored
    assert "eval/in_context_share" not in later and "eval/closeness" not in later
    quick = evaluator.quick([" b c"] * 6 + [" none"] * 4)
    assert set(quick) == {"quick/f1", "quick/two_sample_auc"}
    assert quick["quick/f1"] == pytest.approx(60)


def test_a_resumed_evaluator_keeps_the_baseline(judge: SentimentJudge) -> None:
    first = evaluator_of(judge, 16)
    assert first.state_dict() == {}
    first(responses(20), make_texts(8), sample_nll=3.0, real_nll=4.5)
    resumed = evaluator_of(judge, 16)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    later = (responses(10), make_texts(14))
    assert resumed(*later, sample_nll=3.5, real_nll=4.6) == first(*later, sample_nll=3.5, real_nll=4.6)
    with pytest.raises(UserError, match="corrupted evaluation state"):
        resumed.load_state_dict({"eval/judge_share": 0.5})


def test_one_sample_per_prompt(judge: SentimentJudge) -> None:
    with pytest.raises(AssertionError, match="one sample per evaluation prompt"):
        evaluator_of(judge, 16)(responses(20)[:-1], make_texts(8)[:-1], sample_nll=1.0, real_nll=1.0)


def test_full_texts_join_prompt_and_response_without_special_tokens() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|endoftext|>": 0, "A": 1, "Ġfilm": 2, "Ġ,": 3}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    item = Demonstration(np.array([1, 2], np.int32), np.array([3, 2, 0], np.int32))
    assert full_texts([item], tokenizer) == ["A film , film"]
