from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rlgaf_ray.evaluation.answers import AnswerMeasure
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.evaluation.judge import SentimentJudge
from rlgaf_ray.evaluation.sentiment import SentimentMeasure, gap_closed
from rlgaf_ray.evaluation.text import whole_texts
from rlgaf_ray.types import Demonstration

NUM_PROMPTS = 20
NAMES = {
    *("judge_share", "judge_share_stderr", "judge_share_real", "judge_share_sft", "gap_closed", "judge_accuracy"),
    *("judge_accuracy_window", "vader_share", "vader_share_real", "perplexity", "perplexity_ratio", "real_nll"),
    *("distinct_1", "distinct_2", "distinct_3", "distinct_2_ratio", "self_bleu", "two_sample_accuracy"),
    *("degenerate_share", "response_tokens"),
}


def make_texts(num_positive: int) -> list[str]:
    """NUM_PROMPTS texts, the first of them positive; the nouns keep them apart."""
    opinions = ["a great lovely"] * num_positive + ["an awful horrible"] * (NUM_PROMPTS - num_positive)
    return [f"it was {opinion} thing{row} thing{row + 1}" for row, opinion in enumerate(opinions)]


@pytest.fixture(scope="module")
def judge() -> SentimentJudge:
    texts = [f"{word} film {row}" for row in range(40) for word in ("great lovely", "awful horrible")]
    return SentimentJudge.fit(texts, np.tile([1, 0], 40), window_words=3)


def evaluator_of(judge: SentimentJudge, num_positive: int, wanted: int | np.ndarray = 1) -> Evaluator:
    real = make_texts(num_positive)
    return Evaluator(SentimentMeasure(judge, real, np.broadcast_to(wanted, NUM_PROMPTS)), real)


def responses(num_distinct: int) -> list[np.ndarray]:
    """NUM_PROMPTS responses of five tokens, of which so many are all different."""
    return [np.arange(5) + 10 * min(row, num_distinct - 1) for row in range(NUM_PROMPTS)]


def test_gap_closed() -> None:
    assert gap_closed(0.473, 0.473, 0.755) == 0.0
    assert gap_closed(0.755, 0.473, 0.755) == 1.0
    assert gap_closed(0.715, 0.473, 0.755) == pytest.approx(0.858, abs=1e-3)
    assert gap_closed(0.4, 0.5, 0.7) == pytest.approx(-0.5)
    assert gap_closed(0.6, 0.5, 0.5) == 0.0


def test_every_number_of_a_run(judge: SentimentJudge) -> None:
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
    assert start["eval/response_tokens"] == 5.0

    later = evaluator(responses(10), make_texts(14), sample_nll=math.log(175), real_nll=4.6)
    assert later["eval/judge_share"] == 0.7
    assert later["eval/judge_share_sft"] == 0.4
    assert later["eval/gap_closed"] == pytest.approx(0.75)
    assert later["eval/perplexity_ratio"] == pytest.approx(1.25)
    assert later["eval/distinct_2"] == later["eval/distinct_2_ratio"] == 0.5


def test_a_negative_target_mirrors_the_shares(judge: SentimentJudge) -> None:
    metrics = evaluator_of(judge, 4, wanted=0)(responses(20), make_texts(15), sample_nll=1.0, real_nll=1.0)
    assert metrics["eval/judge_share_real"] == metrics["eval/vader_share_real"] == 0.8
    assert metrics["eval/judge_share"] == metrics["eval/vader_share"] == 0.25


def test_of_both_sentiments_the_one_that_was_asked_for_counts(judge: SentimentJudge) -> None:
    wanted = np.repeat([1, 0], [12, 8])  # positive asked for in the first 12
    metrics = evaluator_of(judge, 12, wanted)(responses(20), make_texts(15), sample_nll=1.0, real_nll=1.0)
    assert metrics["eval/judge_share_real"] == 1.0
    assert metrics["eval/judge_share"] == metrics["eval/vader_share"] == 17 / 20  # 12 and 5 of them
    assert metrics["eval/judge_share_asked_positive"] == 1.0
    assert metrics["eval/judge_share_asked_negative"] == 5 / 8


def test_answers_are_held_against_the_sft_models() -> None:
    references = [("a b c",)] * NUM_PROMPTS
    evaluator = Evaluator(AnswerMeasure(references, [""] * NUM_PROMPTS, no_answer="none"), ["a b c"] * NUM_PROMPTS)
    start = evaluator(responses(20), [" a"] * NUM_PROMPTS, sample_nll=1.0, real_nll=1.0)
    assert (start["eval/length_distance"], start["eval/length_distance_ratio"]) == (2.0, 1.0)
    later = evaluator(responses(20), [" b c"] * 15 + [" none"] * 5, sample_nll=1.0, real_nll=1.0)
    assert later["eval/length_distance"] == pytest.approx(0.75 * 1 + 0.25 * 3)
    assert later["eval/length_distance_ratio"] == pytest.approx(0.75)
    assert later["eval/f1"] == pytest.approx(75)  # "a" is an article: it does not count
    assert "eval/in_context_share" not in later


def test_a_resumed_evaluator_keeps_the_baseline(judge: SentimentJudge) -> None:
    first = evaluator_of(judge, 16)
    assert first.state_dict() == {}
    first(responses(20), make_texts(8), sample_nll=3.0, real_nll=4.5)
    resumed = evaluator_of(judge, 16)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    later = (responses(10), make_texts(14))
    assert resumed(*later, sample_nll=3.5, real_nll=4.6) == first(*later, sample_nll=3.5, real_nll=4.6)
    with pytest.raises(ValueError, match="damaged evaluation state"):
        resumed.load_state_dict({"eval/judge_share": 0.5})


def test_one_sample_per_prompt(judge: SentimentJudge) -> None:
    with pytest.raises(AssertionError, match="one sample per evaluation prompt"):
        evaluator_of(judge, 16)(responses(20)[:-1], make_texts(8)[:-1], sample_nll=1.0, real_nll=1.0)


def test_whole_texts_join_prompt_and_response_and_drops_special_tokens() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|endoftext|>": 0, "A": 1, "Ġfilm": 2, "Ġ,": 3}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    item = Demonstration(np.array([1, 2], np.int32), np.array([3, 2, 0], np.int32))
    assert whole_texts([item], tokenizer) == ["A film , film"]
