"""The task bridge: split, demonstrations, contrast, warm-up blocks and metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlgaf_ray.config import load_config
from rlgaf_ray.data.bridge import BridgeMeasure, BridgeSource, BridgeTask, squares_tokenizer
from rlgaf_ray.data.leaper import Board, judge
from rlgaf_ray.data.task import load_source
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.tokenizer import train_bpe, wrap_bpe
from rlgaf_ray.types import EVALUATION_PARTS

SIZES = ["task.name=bridge", "task.prompt_tokens=2", "task.response_tokens=8"]


def source(*overrides: str) -> BridgeSource:
    found = load_source(load_config(None, [*SIZES, *overrides]).task, base=True)
    assert isinstance(found, BridgeSource)
    return found


def task(*overrides: str) -> BridgeTask:
    found = source(*overrides)
    return found.tokenized(found.tokenizer, Path())


def test_parts_are_disjoint_and_demonstrations_succeed() -> None:
    made = task("task.max_demonstrations=100", "task.draw_seed=3")
    pairs = [*map(tuple, made.pairs["validation"]), *map(tuple, made.pairs["test"]), *map(tuple, made.training_pairs)]
    assert len(pairs) == len(set(pairs)) == 2048  # 64 squares times 32 squares of the same colour
    assert (len(made.pairs["validation"]), len(made.pairs["test"]), len(made.prompts)) == (256, 512, 1280)
    assert len(made.demonstrations) == len(made.contrast) == 100
    for part in ("validation", "test"):
        walks = np.stack([item.response_ids for item in made.evaluation(part)])
        assert judge(made.board, made.pairs[part], walks).success.all()
    training = set(map(tuple, made.training_pairs))
    for item, wrong in zip(made.demonstrations, made.contrast, strict=True):
        goal, start = item.prompt_ids.tolist()
        assert (start, goal) in training
        assert judge(made.board, np.array([[start, goal]]), item.response_ids[None]).success.all()
        assert wrong.prompt_ids[1] == start and wrong.prompt_ids[0] != goal
        assert np.array_equal(wrong.response_ids, item.response_ids)


def test_the_sample_depends_only_on_draw_seed() -> None:
    hundred = "task.max_demonstrations=100"
    first, again, other = (task(hundred, f"task.draw_seed={seed}") for seed in (0, 0, 1))
    keys = [{item.prompt_ids.tobytes() for item in made.demonstrations} for made in (first, again, other)]
    assert keys[0] == keys[1] and len(keys[0] & keys[2]) < 30
    assert first.checksum == other.checksum != task("task.bridge.board=9").checksum


def test_other_prompts_are_the_other_goals_of_training_prompts() -> None:
    made = task("task.max_demonstrations=5")
    others = {tuple(prompt.tolist()) for prompt in made.other_prompts(2)}
    goal, start = made.demonstrations[2].prompt_ids.tolist()
    assert others == {(end, start) for begin, end in made.training_pairs.tolist() if begin == start and end != goal}
    evaluated = {tuple(item.prompt_ids.tolist()) for part in EVALUATION_PARTS for item in made.evaluation(part)}
    assert len(others) == len(made.other_prompts(2)) > 10 and not others & evaluated
    evaluated_prompt = made.evaluation("test")[0].prompt_ids
    beside = {tuple(prompt.tolist()) for prompt in made.negative_prompts(evaluated_prompt)}
    assert {begin for _, begin in beside} == {evaluated_prompt[1]} and not beside & evaluated


@pytest.mark.parametrize("goals", ["visited", "passed", "random", "last"])
def test_warmup_blocks_are_random_legal_walks(goals: str) -> None:
    made = task("task.bridge.base_walks=2000", f"task.bridge.base_goals={goals}")
    blocks = made.warmup_blocks(64)
    assert blocks.token_ids.shape == (2000, 10)
    assert not blocks.learned[:, :2].any()
    assert blocks.learned[:, 2:].all()
    pairs, walks = blocks.token_ids[:, [1, 0]].astype(int), blocks.token_ids[:, 2:].astype(int)
    verdict = judge(made.board, pairs, walks)
    assert verdict.legal.all()
    visited = (walks == pairs[:, 1:]).any(1).mean()
    if goals == "last":
        assert verdict.arrives.all()
    elif goals == "visited":
        assert visited == 1.0
        assert 1 / 8 <= verdict.arrives.mean() < 0.3  # the last of eight squares; squares repeat
    elif goals == "passed":
        assert visited == 1.0
        assert not verdict.arrives.any()
        assert {int((walk == goal).argmax()) for goal, walk in zip(pairs[:, 1], walks, strict=True)} == set(range(7))
    else:
        assert visited < 0.25
        assert verdict.arrives.mean() < 0.05


def test_the_legal_table_is_the_boards_adjacency() -> None:
    made = task()
    assert made.legal is not None and made.legal.shape == (65, 65)
    assert (made.legal[:64, :64] == made.board.moves).all() and not made.legal[:64, 64].any()
    for item in made.demonstrations[:50]:
        line = [item.prompt_ids[1], *item.response_ids]
        assert made.legal[line[:-1], line[1:]].all()
    assert task("task.bridge.legal_only=false").legal is None


def test_measures_parse_and_judge_texts() -> None:
    board = Board(8)
    tokenizer = squares_tokenizer(board)
    measure = BridgeMeasure(board, np.array([[0, 0], [0, 0], [0, 17], [0, 0]]), 2)
    texts = [str(tokenizer.decode([10, 0])), "c2", "c2 b3", "c2 x9"]
    assert texts[0] == "c2 a1"
    metrics = measure(texts)
    assert metrics["eval/success"] == metrics["eval/legal"] == 0.25 and metrics["eval/arrives"] == 0.5
    samples = [["c2 a1", "b3 a1", "c2 a1"], ["c2 a1"] * 3, ["c2 b3"] * 3, ["c2 a1"] * 3]
    assert measure.repeated(samples, None) == {"eval/distinct_successes": 1.0}
    always = BridgeMeasure(board, np.array([[0, 0]] * 2), 2).repeated([["c2 a1"] * 4] * 2, np.full((2, 4), -0.5))
    # There are two walks of two moves from a1 to a1.
    assert always["eval/expert_log_ratio"] == pytest.approx(np.log(2) - 0.5) == always["eval/expert_kl"]
    assert always["eval/success_entropy"] == pytest.approx(0.5)
    assert always["eval/success_entropy_real"] == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["task.response_tokens=7"], "needs task.response_tokens=8, not 7"),
        (["task.bridge.board=3"], "cannot move from some square of a board of 3: raise task.bridge.board"),
        (["task.bridge.board=4"], r"8 moves connect 128 pairs of squares, but .* = 768: lower these"),
    ],
)
def test_impossible_settings_raise(overrides: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        task(*overrides)


def test_a_tokenizer_of_other_tokens_raises() -> None:
    bpe = wrap_bpe(train_bpe(["a1 b3 c5"], 300))
    with pytest.raises(UserError, match="one token for each of its 64 squares"):
        source().tokenized(bpe, Path())
