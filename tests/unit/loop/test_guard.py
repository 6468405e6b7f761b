"""Verdicts on hand-made windows: every kind, and near misses."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from rlgaf_ray.config.guard import GuardSection
from rlgaf_ray.loop.guard import Guard, Verdict
from rlgaf_ray.loop.non_finite import broken, not_finite
from rlgaf_ray.types import Metrics

HEALTHY: Metrics = {
    "rollout/distinct_2": 0.8,
    "rollout/degenerate_share": 0.02,
    "rollout/identical_share": 0.0,
    "rollout/reference_nll": 5.1,
    "generator/entropy": 5.0,
    "generator/kl": 0.1,
    "generator/kl_exact": 0.1,
    "reward/mean": 0.0,
    "reward/deviation": 1.0,
    "discriminator/held_out_accuracy": 0.7,
    "discriminator/held_out_logit_gap": 1.0,
}
SETTINGS = GuardSection(window=4, patience=3)


def verdicts(change: Callable[[int], Metrics], count: int = 30, settings: GuardSection = SETTINGS) -> list[Verdict]:
    """Verdicts of iterations 1 to ``count``, healthy except for the change."""
    guard = Guard(settings, quality="eval/closeness")
    return [guard.examine(iteration, HEALTHY | change(iteration)) for iteration in range(1, count + 1)]


def after(iteration: int, name: str, value: float) -> Callable[[int], Metrics]:
    return lambda now: {name: value} if now > iteration else {}


@pytest.mark.parametrize(
    ("name", "beyond", "within", "kind"),
    [
        ("rollout/distinct_2", 0.63, 0.65, "mode_collapse"),  # 0.8 x 0.8 = 0.64
        ("generator/entropy", 2.9, 3.1, "mode_collapse"),  # 0.6 x 5
        ("rollout/degenerate_share", 0.13, 0.11, "mode_collapse"),  # 0.02 + 0.1
        ("rollout/identical_share", 0.21, 0.19, "mode_collapse"),
        ("generator/kl", 0.51, 0.49, "kl_runaway"),
        ("generator/kl_exact", 0.51, 0.49, "kl_runaway"),
        ("rollout/reference_nll", 5.81, 5.79, "kl_runaway"),  # 5.1 + 0.7
        ("discriminator/held_out_accuracy", 0.96, 0.94, "discriminator_saturated"),
        ("discriminator/held_out_logit_gap", 8.1, 7.9, "discriminator_saturated"),
        ("reward/deviation", 0.09, 0.11, "discriminator_saturated"),
    ],
)
def test_each_limit_and_its_near_miss(name: str, beyond: float, within: float, kind: str) -> None:
    found = verdicts(after(10, name, beyond))
    assert {verdict.kind for verdict in found} == {"healthy", kind}
    first = next(index for index, verdict in enumerate(found) if verdict.kind == kind)
    assert found[first].evidence.startswith(f"{name} is {beyond:.3g} over the last 4 iterations")
    assert all(verdict.kind == kind for verdict in found[first:])
    assert {verdict.kind for verdict in verdicts(after(10, name, within))} == {"healthy"}


def test_the_average_must_exceed_the_limit_for_the_patience() -> None:
    """KL 0.1, then 0.9 from iteration 11 on: averages of 4 are 0.3, 0.5, 0.7, so the onset is 13."""
    found = verdicts(after(10, "generator/kl", 0.9))
    assert [verdict.kind for verdict in found[:14]] == ["healthy"] * 14
    assert found[14] == Verdict(
        "kl_runaway", "generator/kl is 0.9 over the last 4 iterations, above 0.5", onset=13, last_healthy=9
    )


def test_a_spike_is_noise() -> None:
    """One reading of 3 lifts four averages, to 0.825; a patience of five outlasts them, one of three does not."""
    spike = lambda now: {"generator/kl": 3.0} if now == 12 else {}  # noqa: E731
    assert {verdict.kind for verdict in verdicts(spike, settings=GuardSection(window=4, patience=5))} == {"healthy"}
    assert "kl_runaway" in {verdict.kind for verdict in verdicts(spike)}


def test_a_run_that_recovers_is_healthy_again() -> None:
    found = verdicts(lambda now: {"generator/kl": 0.9} if 10 < now <= 16 else {})
    assert found[15].kind == "kl_runaway" and found[-1].kind == "healthy"


def test_limits_are_relative_to_the_start_of_the_run() -> None:
    """Short responses repeat across prompts in a healthy run too, and a task may start at an entropy of 1."""
    always = {"rollout/identical_share": 0.5, "generator/entropy": 1.0, "rollout/distinct_2": 0.3}
    assert {verdict.kind for verdict in verdicts(lambda now: always)} == {"healthy"}


def test_only_non_finite_metrics_fire_before_the_start_is_known() -> None:
    found = verdicts(lambda now: {"generator/kl": 2.0}, count=8)
    assert [verdict.kind for verdict in found] == ["healthy"] * 5 + ["kl_runaway"] * 3
    found = verdicts(lambda now: {"generator/loss": float("nan")} if now == 2 else {}, count=3)
    assert [verdict.kind for verdict in found] == ["healthy", "non_finite", "healthy"]
    assert found[1] == Verdict("non_finite", "generator/loss is nan", onset=2, last_healthy=1)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_skipped_steps_fire_after_k_consecutive_iterations(network: str) -> None:
    def skips(*iterations: int):
        skipped = {f"{network}/skipped_steps": 1.0, f"{network}/grad_norm": float("nan"), "generator/weight_norm": 5.0}
        return [verdict.kind for verdict in verdicts(lambda now: skipped if now in iterations else {}, count=6)]

    assert skips(1, 2, 4, 5) == ["healthy"] * 6
    assert skips(2, 3, 4, 5) == ["healthy"] * 3 + ["non_finite"] * 2 + ["healthy"]


@pytest.mark.parametrize(
    ("network", "name", "waits"),
    [
        ("generator", "generator/kl", True),
        ("generator", "reward/mean", True),
        ("generator", "rollout/reference_nll", True),
        ("generator", "generator/weight_norm", False),  # the step that broke them was applied
        ("generator", "discriminator/loss", False),
        ("discriminator", "discriminator/loss", True),
        ("discriminator", "generator/kl", False),
        ("discriminator", "eval/perplexity", False),
    ],
)
def test_a_skipped_step_explains_the_metrics_of_its_network_only(network: str, name: str, waits: bool) -> None:
    metrics = {f"{network}/skipped_steps": 1.0, name: float("inf")}
    assert verdicts(lambda now: metrics, count=1)[0].kind == ("healthy" if waits else "non_finite")
    assert broken(metrics) is not waits


def test_non_finite_metrics_precede_an_older_verdict() -> None:
    def change(now: int) -> Metrics:
        return {"generator/kl": 0.9} | ({"generator/weight_norm": float("nan")} if now == 25 else {})

    found = verdicts(change)
    assert [found[now].kind for now in (23, 24, 25)] == ["kl_runaway", "non_finite", "kl_runaway"]


def test_skipped_steps_of_earlier_updates_count() -> None:
    """The metrics of a later discriminator update of the iteration hide those of the first, not its skipped step."""
    assert verdicts(lambda now: {"discriminator/skipped_steps": 1.0}, count=3)[2].evidence == "1 steps were skipped"


def test_non_finite_metrics_are_named() -> None:
    assert not_finite({"generator/loss": 1.0}) == ""
    found = not_finite({"generator/loss": float("nan"), "reward/mean": 0.5, "generator/kl": float("inf")})
    assert found == "generator/loss is nan, generator/kl is inf"


def test_missing_metrics_are_no_symptom() -> None:
    guard = Guard(SETTINGS, quality="eval/closeness")
    assert {guard.examine(iteration, {"reward/mean": 0.0}).kind for iteration in range(1, 20)} == {"healthy"}


def evaluated(qualities: dict[int, float], rewards: dict[int, float]) -> Callable[[int], Metrics]:
    def change(now: int) -> Metrics:
        reward = max((at, value) for at, value in rewards.items() if at <= now)[1]
        return {"reward/mean": reward} | ({"eval/closeness": qualities[now]} if now in qualities else {})

    return change


FALL = {5: -0.4, 10: -0.2, 15: -0.35, 20: -0.35}


def test_drift_is_quality_that_falls_while_the_reward_rises() -> None:
    found = verdicts(evaluated(FALL, {1: 0.0, 11: 1.0}))
    assert [verdict.kind for verdict in found[:19]] == ["healthy"] * 19
    assert found[19] == Verdict(
        "drift",
        "eval/closeness fell from -0.2 at iteration 10 to -0.35 while reward/mean rose from 0 to 1",
        onset=20,
        last_healthy=10,
    )


@pytest.mark.parametrize(
    ("qualities", "rewards"),
    [
        (FALL, {1: 0.0}),  # the reward does not rise
        (FALL, {1: 0.0, 11: -1.0}),  # it falls with the quality: the discriminator sees what the judge sees
        ({5: -0.4, 10: -0.2, 15: -0.35, 20: -0.28}, {1: 0.0, 11: 1.0}),  # one low evaluation may be noise
        ({5: -0.4, 10: -0.2, 15: -0.29, 20: -0.295}, {1: 0.0, 11: 1.0}),  # less than 0.1 below the best
        ({10: -0.2, 15: -0.35}, {1: 0.0, 11: 1.0}),  # too few
    ],
)
def test_near_drift(qualities: dict[int, float], rewards: dict[int, float]) -> None:
    assert {verdict.kind for verdict in verdicts(evaluated(qualities, rewards))} == {"healthy"}


def test_percent_metrics_are_divided_by_100() -> None:
    def found(fallen: float) -> set[str]:
        guard = Guard(SETTINGS, quality="eval/f1")
        rows = [(0.0, 40.0), (0.0, 60.0), (1.0, fallen), (1.0, fallen)]
        return {
            guard.examine(index, HEALTHY | {"reward/mean": reward, "eval/f1": f1}).kind
            for index, (reward, f1) in enumerate(rows, start=1)
        }

    assert found(51.0) == {"healthy"}
    assert found(49.0) == {"healthy", "drift"}


def test_a_quality_that_is_better_when_lower_drifts_upwards() -> None:
    def found(values: tuple[float, ...]) -> str:
        guard = Guard(SETTINGS, quality="eval/two_sample_auc")
        rows = zip((0.0, 0.0, 1.0, 1.0), values, strict=True)
        seen = [
            guard.examine(index, HEALTHY | {"reward/mean": reward, "eval/two_sample_auc": auc})
            for index, (reward, auc) in enumerate(rows, start=1)
        ]
        return next((verdict.evidence for verdict in seen if verdict.kind == "drift"), "")

    assert found((0.9, 0.9, 0.6, 0.6)) == ""
    assert found((0.9, 0.6, 0.8, 0.8)).startswith("eval/two_sample_auc rose from 0.6 at iteration 2 to 0.8 while")


def test_the_longest_symptom_is_the_verdict() -> None:
    change = lambda now: after(10, "generator/kl", 9.0)(now) | after(12, "rollout/distinct_2", 0.0)(now)  # noqa: E731
    assert verdicts(change)[-1].kind == "kl_runaway"


def test_the_state_is_restored() -> None:
    change = after(10, "generator/kl", 0.9)
    expected = verdicts(change)
    first = Guard(SETTINGS, quality="eval/closeness")
    found = [first.examine(iteration, HEALTHY | change(iteration)) for iteration in range(1, 14)]
    second = Guard(SETTINGS, quality="eval/closeness")
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [second.examine(iteration, HEALTHY | change(iteration)) for iteration in range(14, 31)]
    assert found == expected


def reading(auc: float, two_sample: float, *, reward: float = 0.0, judged: float = 0.6) -> Metrics:
    return {
        "quick/held_out_auc": auc,
        "quick/held_out_auc_interval": 0.05,
        "quick/two_sample_auc": two_sample,
        "quick/judge_share": judged,
        "reward/mean": reward,
    }


@pytest.mark.parametrize(
    ("auc", "two_sample", "kind"),
    [
        (0.29, 0.85, "discriminator_uninformative"),  # inverted
        (0.54, 0.70, "discriminator_uninformative"),
        (0.56, 0.70, "healthy"),  # above chance by its interval
        (0.43, 0.53, "discriminator_uninformative"),  # the text is close to real text, and it prefers the wrong one
        (0.50, 0.54, "healthy"),  # the classifier cannot tell either
        (0.46, 0.54, "discriminator_uninformative"),  # by the margin of 0.08
        (0.47, 0.54, "healthy"),
        (0.42, 0.52, "healthy"),  # the classifier's interval includes chance
    ],
)
def test_a_discriminator_at_chance_while_a_classifier_is_not(auc: float, two_sample: float, kind: str) -> None:
    found = verdicts(lambda now: reading(auc, two_sample) if now % 15 == 0 else {}, count=60)
    assert {verdict.kind for verdict in found[:44]} == {"healthy"}
    assert found[44].kind == kind  # at the third evaluation
    if kind != "healthy":
        assert f"AUC of the discriminator is {auc:.3f} over the last 3 evaluations" in found[44].evidence
        assert found[44].last_healthy == 15  # the first reading: none before was healthy


@pytest.mark.parametrize(("auc", "kind"), [(0.29, "discriminator_uninformative"), (0.48, "healthy")])
def test_with_contrast_a_discriminator_may_be_at_chance_but_not_below(auc: float, kind: str) -> None:
    guard = Guard(SETTINGS, quality="eval/closeness", contrast=True)
    found = [guard.examine(now, HEALTHY | (reading(auc, 0.7) if now % 15 == 0 else {})) for now in range(1, 46)]
    assert found[-1].kind == kind


def test_an_uninformative_discriminator_was_healthy_at_the_previous_reading() -> None:
    """It is informative at 15 and 30, and at chance at 45, 60 and 75."""
    found = verdicts(lambda now: reading(0.8 if now < 45 else 0.5, 0.7) if now % 15 == 0 else {}, count=75)
    assert [(verdict.kind, verdict.last_healthy) for verdict in found[73:]] == [
        ("healthy", 0),
        ("discriminator_uninformative", 30),
    ]


@pytest.mark.parametrize(
    ("iteration", "earliest"),
    [(6, 0), (14, 7), (15, 8), (30, 15), (44, 15), (45, 15), (60, 30), (75, 45)],
)
def test_earliest_rollback(iteration: int, earliest: int) -> None:
    """7 iterations by window and patience; by readings the one before three, of which the last is yet to come."""
    guard = Guard(SETTINGS, quality="eval/closeness")
    for now in range(1, iteration + 1):
        guard.examine(now, HEALTHY | (reading(0.8, 0.7) if now % 15 == 0 else {}))
    assert guard.earliest_rollback(iteration) == earliest


@pytest.mark.parametrize(
    ("two_sample", "reward", "judged", "kind"),
    [
        (0.80, 0.5, 0.60, "reward_hacking"),  # the reward rises
        (0.80, -0.5, 0.70, "reward_hacking"),  # one judge does
        (0.80, -0.5, 0.60, "healthy"),  # farther from real text, but not rewarded more
        (0.75, 0.5, 0.70, "healthy"),  # within the noise
    ],
)
def test_reward_hacking(two_sample: float, reward: float, judged: float, kind: str) -> None:
    def change(now: int) -> Metrics:
        late = now > 45
        shown = reading(0.7, two_sample if late else 0.7, judged=judged if late else 0.6)
        return (shown if now % 15 == 0 else {}) | {"reward/mean": reward if late else 0.0}

    found = verdicts(change, count=90)
    assert {verdict.kind for verdict in found[:89]} <= {"healthy", kind}
    assert found[89].kind == kind
    assert found[89].last_healthy == (45 if kind == "reward_hacking" else 0)


def test_readings_are_part_of_the_state() -> None:
    first = Guard(SETTINGS, quality="eval/closeness")
    for iteration in range(1, 16):
        first.examine(iteration, HEALTHY | (reading(0.3, 0.9) if iteration % 5 == 0 else {}))
    second = Guard(SETTINGS, quality="eval/closeness")
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.readings == first.readings and len(first.readings) == 3
