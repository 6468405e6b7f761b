from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rlgaf_ray.evaluation.evaluate import Evaluator, gap_closed
from rlgaf_ray.evaluation.judge import SentimentJudge
from rlgaf_ray.evaluation.text import decode
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
    evaluator = Evaluator(judge, make_texts(16))
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
    metrics = Evaluator(judge, make_texts(4), "negative")(responses(20), make_texts(15), sample_nll=1.0, real_nll=1.0)
    assert metrics["eval/judge_share_real"] == metrics["eval/vader_share_real"] == 0.8
    assert metrics["eval/judge_share"] == metrics["eval/vader_share"] == 0.25


def test_a_resumed_evaluator_keeps_the_baseline(judge: SentimentJudge) -> None:
    first = Evaluator(judge, make_texts(16))
    assert first.state_dict() == {}
    first(responses(20), make_texts(8), sample_nll=3.0, real_nll=4.5)
    resumed = Evaluator(judge, make_texts(16))
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    later = (responses(10), make_texts(14))
    assert resumed(*later, sample_nll=3.5, real_nll=4.6) == first(*later, sample_nll=3.5, real_nll=4.6)
    with pytest.raises(ValueError, match="damaged evaluation state"):
        resumed.load_state_dict({"eval/judge_share": 0.5})


def test_one_sample_per_prompt(judge: SentimentJudge) -> None:
    with pytest.raises(AssertionError, match="one sample per evaluation prompt"):
        Evaluator(judge, make_texts(16))(responses(20)[:-1], make_texts(8)[:-1], sample_nll=1.0, real_nll=1.0)


def test_decode_joins_prompt_and_response_and_drops_special_tokens() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|endoftext|>": 0, "A": 1, "Ġfilm": 2, "Ġ,": 3}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    item = Demonstration(np.array([1, 2], np.int32), np.array([3, 2, 0], np.int32))
    assert decode([item], tokenizer) == ["A film , film"]
