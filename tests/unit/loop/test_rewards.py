"""Rewards from scores and functions with TRL's arguments, and failing functions."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlgaf_ray.config import Config, load_config
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.monte_carlo import search
from rlgaf_ray.loop.reward_functions import RewardFunction, reward_functions, with_rewards
from rlgaf_ray.loop.rewards import Rewarded, RewardFailed, Rewards
from rlgaf_ray.types import Prompt, Rollout, SamplingSettings, ScoredRollout

SEQUENCE = ["generator.reinforce.credit=sequence", "generator.reinforce.baseline=leave_one_out"]
CHAT = [{"role": "user", "content": "Hello?"}]


class Letters:
    """Token 0 is the letter a."""

    def batch_decode(self, rows: Sequence[Sequence[int]], **settings: bool) -> list[str]:
        return ["".join(chr(97 + token) for token in row) for row in rows]


@pytest.fixture
def rewards() -> Iterator[Callable[..., Rewards]]:
    made: list[Rewards] = []

    def build(passed: Any = (), *overrides: str, rows: Sequence[Mapping[str, Any]] = ()) -> Rewards:
        config, functions = with_rewards(load_config(None, [*SEQUENCE, *overrides]), passed)
        made.append(Rewards(config, SimpleNamespace(rows=rows), Letters(), functions))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for each in made:
        each.close()


def scored(*texts: str, scores: Sequence[float] | None = None) -> list[ScoredRollout]:
    """Responses to prompts 0, 1, ..., whose text is x."""
    return [
        ScoredRollout(
            Rollout(
                row,
                np.array([23], np.int32),
                np.array([ord(letter) - 97 for letter in text], np.int32),
                np.zeros(len(text), np.float32),
                "stop",
                0,
            ),
            0.1 * row if scores is None else scores[row],
            0,
        )
        for row, text in enumerate(texts)
    ]


def values(found: Rewarded) -> list[float | None]:
    return [item.reward for item in found.scored]


def length(completions: list[str], **columns: object) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("kind", ["logit", "probability_centered", "zero"])
def test_without_functions_the_reward_is_the_discriminators(rewards, kind: str) -> None:
    found = rewards((), f"reward.kind={kind}")(scored("ab", "c", scores=[0.1, -3.3]), 1)
    expected: list[float] = {
        "logit": np.array([0.1, -3.3], np.float32).tolist(),
        "probability_centered": [1 / (1 + math.exp(-0.1)) - 0.5, 1 / (1 + math.exp(3.3)) - 0.5],
        "zero": [0.0, 0.0],
    }[kind]
    assert values(found) == (pytest.approx(expected) if kind == "probability_centered" else expected)
    assert (found.metrics, found.columns) == ({}, {})


def test_a_weighted_sum_logs_each_source(rewards) -> None:
    def vowels(completions: list[str], **columns: object) -> list[float | None]:
        return [None if text == "zz" else float(sum(text.count(vowel) for vowel in "aeiou")) for text in completions]

    passed = {"discriminator": 0.5, length: 0.25, vowels: -2.0}
    found = rewards(passed)(scored("abe", "zz", scores=[4.0, 2.0]), 1)
    assert values(found) == [2.0 + 0.75 - 4.0, 1.0 + 0.5]
    assert found.metrics == {
        "reward/discriminator": 3.0,
        "reward/length": 2.5,
        "reward/vowels": 2.0,
        "reward/vowels_left_out": 0.5,
    }
    assert found.columns["reward/vowels"] == [2.0, None] and found.columns["reward/discriminator"] == [4.0, 2.0]


def test_a_product_of_powers(rewards) -> None:
    product = ["reward.combine=product", "reward.kind=probability"]
    found = rewards({length: 2.0}, *product)(scored("abc", "d", scores=[0.0, 800.0]), 1)
    assert values(found) == [0.5 * 9.0, 1.0]


@pytest.mark.parametrize("combine", ["sum", "product"])
def test_a_reward_of_weight_0_is_logged_only(rewards, combine: str) -> None:
    def nothing(completions: list[str], **columns: object) -> list[float]:
        return [0.0] * len(completions)

    words = [f"reward.combine={combine}", "reward.discriminator_weight=0"]
    found = rewards({nothing: 0.0, length: 1.0}, *words)(scored("ab", "c", scores=[math.nan, 1.0]), 1)
    assert values(found) == [2.0, 1.0] and found.metrics["reward/nothing"] == 0.0


def test_non_finite_scores_pass_through(rewards) -> None:
    (first, _) = values(rewards([length])(scored("ab", "c", scores=[math.nan, 1.0]), 1))
    assert first is not None and math.isnan(first)  # reported by the learner


def test_a_response_without_any_reward_gets_the_mean(rewards) -> None:
    def some(completions: list[str], **columns: object) -> list[float | None]:
        return [None if text == "none" else float(len(text)) for text in completions]

    only = {"discriminator": 0.0, some: 1.0}
    assert values(rewards(only)(scored("ab", "none", "abcd"), 1)) == [2.0, 3.0, 4.0]
    found = rewards(only)(scored("none", "none"), 1)
    assert values(found) == [0.0, 0.0] and found.metrics["reward/some_left_out"] == 1.0
    assert "reward/some" not in found.metrics


def test_functions_get_what_trl_passes(rewards) -> None:
    seen: list[dict[str, Any]] = []

    def look(**columns: Any) -> list[float]:
        seen.append(columns)
        columns["log_metric"]("share", 0.5)
        columns["log_extra"]("first", [text[0] for text in columns["prompts"]])
        return [0.0] * len(columns["prompts"])

    rows = [{"prompt": "Why?", "answer": 3}, {"answer": 4, "level": "hard"}, {"prompt": CHAT, "prompts": "taken"}]
    found = rewards([look], "run.iterations=9", rows=rows)(scored("ab", "c", "b"), 4)
    (columns,) = seen
    state = columns.pop("trainer_state")
    assert (state.global_step, state.max_steps) == (3, 9)
    assert callable(columns.pop("log_metric")) and callable(columns.pop("log_extra"))
    assert columns == {
        "prompts": ["Why?", "x", CHAT],
        "completions": ["ab", "c", [{"role": "assistant", "content": "b"}]],
        "completion_ids": [[0, 1], [2], [1]],
        "answer": [3, 4, None],
        "level": [None, "hard", None],
    }
    assert found.metrics["reward/look/share"] == 0.5
    assert found.columns["look/first"] == ["W", "x", str(CHAT[0])]


def test_functions_may_be_async_or_take_only_some_arguments(rewards) -> None:
    async def slow(completions: list[str], **columns: object) -> list[float]:
        await asyncio.sleep(0.001)
        return length(completions)

    def wrapped(completions: list[str]) -> list[float]:
        return asyncio.run(slow(completions))

    class Scale:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        async def __call__(self, completion_ids: list[list[int]], **columns: object) -> np.ndarray:
            return self.factor * np.array([len(ids) for ids in completion_ids])

    found = rewards({"discriminator": 0.0, slow: 1.0, wrapped: 10.0, Scale(2.0): 100.0})(scored("ab", "c"), 1)
    assert values(found) == [222.0 - 0.0 + 200.0, 211.0]
    assert set(found.metrics) == {f"reward/{name}" for name in ("discriminator", "slow", "wrapped", "Scale")}


def raises(**columns: object) -> list[float]:
    raise ValueError("no\nway")


def leaves(**columns: object) -> list[float]:
    raise SystemExit(3)


def hangs(**columns: object) -> list[float]:
    threading.Event().wait(20)
    return []


async def waits(**columns: object) -> list[float]:
    await asyncio.sleep(20)
    return []


def is_nan(**columns: object) -> list[float]:
    return [0.0, math.nan]


def is_long(**columns: object) -> list[float]:
    return [0.0] * 3


def is_number(**columns: object) -> float:
    return 0.0


def is_text(**columns: object) -> list[str]:
    return ["a", "b"]


def needs(solution: list[str], **columns: object) -> list[float]:
    return [0.0, 0.0]


def logs(log_extra: Callable[..., None], **columns: object) -> list[float]:
    log_extra("note", ["one"])
    return [0.0, 0.0]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (raises, "raised ValueError: no way (test_rewards.py:"),
        (leaves, "raised SystemExit: 3"),
        (hangs, "did not return within reward.timeout_seconds=0.2"),
        (waits, "did not return within reward.timeout_seconds=0.2"),
        (is_nan, "returned nan for response 1: return finite numbers, or None for no reward"),
        (is_long, "returned 3 rewards for 2 responses"),
        (is_number, "did not return a list of numbers: TypeError"),
        (is_text, "did not return a list of numbers: ValueError"),
        (needs, "raised TypeError: needs() missing 1 required positional argument: 'solution'"),
        (logs, "logged 1 values of logs/note for 2 responses"),
    ],
)
def test_a_failing_function_is_named(rewards, function: RewardFunction, expected: str) -> None:
    patience = 0.2 if function in (hangs, waits) else 60
    with pytest.raises(RewardFailed) as caught:
        rewards([function], f"reward.timeout_seconds={patience}")(scored("a", "b"), 1)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"reward function {function.__name__} {expected}")  # type: ignore[attr-defined]
    if "raised" in expected:
        assert caught.value.__cause__ is not None and "rewards.py:" in str(caught.value)


def test_a_product_rejects_a_negative_reward(rewards) -> None:
    def penalty(completions: list[str], **columns: object) -> list[float]:
        return [-1.0] * len(completions)

    with pytest.raises(RewardFailed, match=r"penalty returned -1 for response 0, but reward\.combine=product needs"):
        rewards([penalty], "reward.combine=product", "reward.kind=probability")(scored("a"), 1)


def test_functions_of_trl_run_unchanged(rewards) -> None:
    from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

    passed = {
        "discriminator": 0.0,
        think_format_reward: 1.0,
        get_soft_overlong_punishment(4, 2): 10.0,
        get_repetition_penalty_reward(ngram_size=2): 100.0,
    }
    found = rewards(passed, rows=[{"prompt": CHAT}] * 2)(scored("abc", "aaaaa"), 1)
    assert values(found) == pytest.approx([-5.0, -10.0 - 75.0])
    names = ("think_format_reward", "soft_overlong_punishment_reward", "repetition_penalty_reward")
    assert set(found.metrics) == {"reward/discriminator", *(f"reward/{name}" for name in names)}


# Loading functions.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(
        "NAME = 'x'\n\ndef short(completions, **columns):\n    return [-len(text) for text in completions]\n"
    )
    return path


def test_functions_are_loaded_by_path(rewards, file: Path) -> None:
    words = f"reward.functions=[{{path: '{file}:short', weight: 0.5}}, {{path: 'tests.unit.loop.test_rewards:length'}}]"
    assert values(rewards({"discriminator": 0.0}, words)(scored("ab"), 1)) == [-1.0 + 2.0]
    assert values(rewards({"discriminator": 0.0, "short": 3.0}, words)(scored("ab"), 1)) == [-6.0 + 2.0]
    renamed = f"reward.functions=[{{path: '{file}:short', name: brief}}]"
    assert list(rewards((), renamed).functions) == ["brief"]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("path: 'FILE:long'", r"reward\.functions: .*my_rewards\.py has no long"),
        ("path: 'FILE:NAME'", r"reward\.functions: .*my_rewards\.py:NAME is not a function"),
        ("path: 'nowhere:short'", r"reward\.functions: nowhere cannot be imported"),
        ("path: short", r"reward\.functions: 'short' names no object"),
        ("name: gone", r"gone was passed as an argument and has no path: pass it again in rewards"),
    ],
)
def test_loading_errors_are_one_sentence(file: Path, section: str, expected: str) -> None:
    name = "" if "name" in section else ", name: x"
    config = load_config(None, [f"reward.functions=[{{{section.replace('FILE', str(file))}{name}}}]"])
    with pytest.raises(UserError, match=expected):
        reward_functions(config.reward)


def written(config: Config) -> dict[str, float]:
    return {section.label: section.weight for section in config.reward.functions}


def test_arguments_are_written_into_the_config() -> None:
    """The learner then knows the weights, and a resumed run knows which function is missing."""
    config, passed = with_rewards(load_config(), {"discriminator": 0.5, length: 0.3})
    assert config.reward.discriminator_weight == 0.5 and written(config) == {"length": 0.3}
    assert passed == {"length": length}
    again, passed = with_rewards(config, [length])
    assert again.reward.discriminator_weight == 0.5 and written(again) == {"length": 1.0}
    assert reward_functions(again.reward, passed) == {"length": length}
    same, passed = with_rewards(config, ())
    assert same is config and passed == {}
    config, passed = with_rewards(load_config(), [lambda completions, **columns: [0.0] * len(completions)])
    assert written(config) == {"lambda": 1.0}


@pytest.mark.parametrize(
    ("passed", "expected"),
    [
        ({"lenght": 1.0}, "unknown reward 'lenght': use discriminator, or pass a function"),
        ([length, partial(length)], "two functions are named length"),
        ([3], "3 is neither a function nor the name of a reward"),
        ({length: math.nan}, "must be a finite number"),
        ({"discriminator": -1.0}, "must be greater than or equal to 0"),
    ],
)
def test_invalid_arguments_are_rejected_in_one_sentence(passed: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        with_rewards(load_config(), passed)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_gumbel_takes_no_function_as_an_argument() -> None:
    with pytest.raises(UserError, match="learns from the discriminator's gradient"):
        with_rewards(load_config(None, ["generator.algorithm=gumbel"]), [length])


# SeqGAN.


class Completing:
    """Completes every prefix with the letter e to full length, and scores 0."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        zeros = np.zeros(9, np.float32)
        return [
            Rollout(prompt.prompt_id, prompt.token_ids, ids, zeros[: len(ids)], "length", 0)
            for prompt in prompts
            for ids in [np.full(prompt.max_new_tokens or 0, 4, np.int32)] * sampling.samples_per_prompt
        ]

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        return [ScoredRollout(rollout, 0.0, 0) for rollout in rollouts]


def test_action_values_include_reward_functions(rewards) -> None:
    def share(prompts: list[str], completions: list[str], answer: list[int], **columns: object) -> list[float]:
        assert set(prompts) == {"x"}
        return [text.count("e") + 10.0 * number for text, number in zip(completions, answer, strict=True)]

    words = ["generator.algorithm=seqgan", "generator.seqgan.num_completions=2", "task.response_tokens=3"]
    mixed = rewards([share], *words, rows=[{"answer": 1}, {"answer": 2}])
    found = search(Completing(), mixed.config, mixed, mixed(scored("abc", "ee", scores=[0, 0]), 1).scored, 1)  # type: ignore[arg-type]
    assert [item.action_values.tolist() for item in found] == [[12.0, 11.0, 10.0], [23.0, 22.0]]  # type: ignore[union-attr]
