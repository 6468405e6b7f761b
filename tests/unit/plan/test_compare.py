"""Plans of a comparison: counts against hand-computed sums, seconds against the formulas, and the printed page."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlgaf_ray.actors.packing import Node
from rlgaf_ray.compare.budget import Budget
from rlgaf_ray.config import Config, load_config
from rlgaf_ray.errors import UserError
from rlgaf_ray.main import main
from rlgaf_ray.plan.compare import ComparisonPlan, duration, plan_comparison
from rlgaf_ray.plan.estimate import Hardware
from rlgaf_ray.plan.shape import ModelShape
from rlgaf_ray.plan.speed import Rates, Work, forward_flops, rollout_seconds

CONFIGS = Path(__file__).parents[3] / "configs"
TOY = ModelShape(4000, 3, 8, 2, 2, 4, 32, False, 100, True)
RATES = Rates(flops=1e6, memory=1e6, network=100.0, host=1000.0, step_seconds=0.0, token_seconds=0.0)
SIZES = [
    "compare.methods=[sft, contrastive_sft, best_of_16, rejection, spin, frozen, zero_reward, rlgaf]",
    "compare.sft_steps=[]",
    "run.iterations=300",
    "warmup.sft.contrastive_weight=0",
    "warmup.sft.steps=100",
    "warmup.sft.batch_size=64",
    "warmup.discriminator.rollouts=128",
]


def planned(*overrides: str) -> tuple[Config, ComparisonPlan]:
    """Plan the bridge config: 300 iterations of 128 rollouts, 150 warm-up updates of D, 100 SFT steps."""
    config = load_config(CONFIGS / "bridge.yaml", [*SIZES, *overrides])
    return config, plan_comparison(config, TOY, Hardware([Node(2.0)], 0.0), RATES, bfloat16=False)


def test_counts_match_hand_computed_sums() -> None:
    _, plan = planned()
    assert {each.name: each.budget for each in plan.methods} == {
        "sft": Budget(0, 100, 0, 1, 8),
        "contrastive_sft": Budget(0, 100, 0, 1, 8),
        # 150 updates on 128 rollouts each; 16 answers of 8 tokens, and a score for each.
        "best_of_16": Budget(19_200, 100, 150, 16, 144),
        # 6 rounds of 6,400 rollouts; 800 are kept: 25 steps of 32, in 2 epochs; one update of D per round.
        "rejection": Budget(19_200 + 38_400, 100 + 6 * 2 * 25, 150 + 6, 1, 8),
        # 3 rounds of 12,800 pairs, 100 steps of 128 each.
        "spin": Budget(38_400, 100 + 300, 0, 1, 8),
        "frozen": Budget(19_200 + 38_400, 100 + 300, 150, 1, 8),
        "zero_reward": Budget(38_400, 100 + 300, 0, 1, 8),
        "rlgaf": Budget(19_200 + 38_400, 100 + 300, 150 + 150, 1, 8),
    }


def test_all_sft_step_counts_are_counted() -> None:
    _, plan = planned("compare.sft_steps=[50, 200]")
    found = {each.name: each for each in plan.methods}
    assert found["sft"].budget == Budget(0, 200, 0, 1, 8)  # from 50 to 200 in the second part
    assert found["rlgaf"].budget.generator_steps == 100 + 300
    assert found["sft"].sft_seconds == pytest.approx(2.0 * found["rlgaf"].sft_seconds)


def test_stages_that_methods_share_are_counted_once() -> None:
    """SFT of 100 steps is shared by all but the contrastive method; hindsight has a base model of its own."""
    methods = "compare.methods=[sft, contrastive_sft, rlgaf, hindsight]"
    _, plan = planned(methods, "compare.sft_steps=[100, 50]", "compare.replicates=2")
    found = {each.name: each for each in plan.methods}
    assert plan.shared_seconds == pytest.approx(found["rlgaf"].sft_seconds)
    _, without = planned("compare.methods=[sft, contrastive_sft, rlgaf]")
    assert plan.base_seconds == pytest.approx(2 * without.base_seconds)


def test_seconds_and_wall_time() -> None:
    config, plan = planned("compare.temperatures=[1.0, 0.5]", "compare.top_p=[0.9]", "compare.samples=2")
    found = {each.name: each for each in plan.methods}
    flops = forward_flops(TOY, length=10)
    sft = 100 * 64 * 10 * 3 * flops / 1e6
    assert found["sft"].sft_seconds == pytest.approx(sft)
    assert found["contrastive_sft"].sft_seconds == pytest.approx(9 * sft)  # also read with 8 other prompts
    # 256 prompts of each of 2 parts, 2 answers each, 64 prompts at a time, with 3 decodings.
    batch = rollout_seconds(TOY, Work(128, 2, 8, 0, 0.0), RATES, engines=1, cores=1, element=4)
    assert found["sft"].measure_seconds == pytest.approx(2 * 3 * 4 * batch)
    assert found["best_of_16"].measure_seconds > 16 * found["sft"].measure_seconds * 0.9
    assert found["sft"].train_seconds == 0 < found["best_of_16"].train_seconds < found["frozen"].train_seconds
    assert found["frozen"].train_seconds < found["rlgaf"].train_seconds
    # Seven methods share a replicate's SFT model: six of them reuse the one that the first trains. Three of the four
    # that need a discriminator reuse its warm-up.
    shared = 6 * sft + 3 * found["best_of_16"].train_seconds
    assert plan.shared_seconds == pytest.approx(shared)
    base = 1600 * 64 * 10 * 3 * flops / 1e6
    trials = 3 * (sum(each.seconds for each in plan.methods) - shared)
    assert plan.wall_seconds == pytest.approx(base + trials / 2)  # one trial per core
    assert planned("compare.concurrent=1")[1].at_a_time == 1
    assert config.compare.replicates == plan.replicates == 3


def test_no_more_trials_run_at_a_time_than_there_are() -> None:
    few = ["compare.methods=[sft]", "compare.replicates=2", "compare.concurrent=8"]
    assert planned(*few)[1].at_a_time == 2
    assert planned(*few, "compare.replicates=9")[1].at_a_time == 8


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.0, "1 minute"),
        (119.0, "2 minutes"),
        (3540.0, "59 minutes"),
        (3541.0, "1.0 hours"),
        (5400.0, "1.5 hours"),
    ],
)
def test_a_wall_time_below_an_hour_is_in_minutes(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_comparison_is_planned_if_the_config_has_a_compare_section(capsys: pytest.CaptureFixture[str]) -> None:
    large = [f"model.generator={CONFIGS / 'scaling/shapes/1_5b'}", "--gpus-per-node", "8", "--cpus-per-node", "128"]
    assert main(["plan", str(CONFIGS / "scaling/8_gpus.yaml"), *large]) == 0
    assert "comparison" not in capsys.readouterr().out
    methods = "compare.methods=[sft, contrastive_sft, rlgaf]"
    assert main(["plan", str(CONFIGS / "scaling/8_gpus.yaml"), *large, methods]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "model: 1,543.7 M parameters" in printed
    assert "comparison: one of 3 replicates of each method" in printed and "GPU s" in printed
    assert "│ contrastive_sft │" in printed  # the name that compare.methods takes, on one line
    assert "9 trials, one after another on 8 GPUs" in printed and "of 80 GiB: fits" in printed


def test_a_method_that_the_config_does_not_support_is_named() -> None:
    with pytest.raises(UserError, match=r"compare.methods: gad does not work with this config: .*samples_per_prompt"):
        planned("compare.methods=[sft, gad]", "rollout.samples_per_prompt=1", "generator.reinforce.baseline=none")


def test_the_posterior_scores_with_one_pass_per_prompt() -> None:
    """Eight other prompts: nine passes per candidate."""
    _, plan = planned("compare.methods=[sft, zero_reward, posterior, best_of_16, best_of_16_posterior]")
    found = {each.name: each for each in plan.methods}
    assert found["best_of_16_posterior"].budget.passes == 16 * (8 + 9)
    assert found["posterior"].train_seconds > found["zero_reward"].train_seconds
    assert found["best_of_16_posterior"].measure_seconds > found["best_of_16"].measure_seconds


def test_a_schedule_of_the_discriminator_is_shared_for_equal_numbers_of_updates() -> None:
    schedule = "discriminator.learning_rate_schedule=linear"
    _, plan = planned("compare.methods=[sft, best_of_4, best_of_16]", schedule)
    _, other = planned("compare.methods=[sft, best_of_4, frozen]", schedule)  # frozen has no updates after its warm-up
    found = plan.methods[1]
    assert plan.shared_seconds == pytest.approx(2 * found.sft_seconds + found.train_seconds)
    assert other.shared_seconds == pytest.approx(2 * found.sft_seconds)
