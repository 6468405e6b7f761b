import json
import math

import numpy as np
import pytest
import torch

from rlgaf_ray.objectives.advantages import (
    RunningStatistics,
    generalized_advantage_estimate,
    rewards_to_go,
    scale_advantages,
    whiten,
)

NAN = math.nan
# Two prompt columns, responses of four and two tokens, right padding.
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0, 0]]).bool()


class TestRewardsToGo:
    REWARDS = torch.tensor([[9.0, 9.0, 1.0, 0.0, 2.0, 4.0, 9.0], [9.0, 9.0, 3.0, 5.0, 9.0, 9.0, 9.0]])

    def test_undiscounted(self):
        expected = [[0.0, 0.0, 7.0, 6.0, 6.0, 4.0, 0.0], [0.0, 0.0, 8.0, 5.0, 0.0, 0.0, 0.0]]
        assert rewards_to_go(self.REWARDS, MASK, discount=1.0).tolist() == expected

    def test_discounted(self):
        # row 0: 4; 2 + 2; 0 + 2; 1 + 1. row 1: 5; 3 + 2.5
        expected = [[0.0, 0.0, 2.0, 2.0, 4.0, 4.0, 0.0], [0.0, 0.0, 5.5, 5.0, 0.0, 0.0, 0.0]]
        assert rewards_to_go(self.REWARDS, MASK, discount=0.5).tolist() == expected

    def test_discount_zero_returns_the_rewards(self):
        expected = [[0.0, 0.0, 1.0, 0.0, 2.0, 4.0, 0.0], [0.0, 0.0, 3.0, 5.0, 0.0, 0.0, 0.0]]
        assert rewards_to_go(self.REWARDS, MASK, discount=0.0).tolist() == expected

    def test_masked_entries_are_ignored(self):
        poisoned = self.REWARDS.masked_fill(~MASK, NAN)
        assert torch.equal(rewards_to_go(poisoned, MASK, discount=0.9), rewards_to_go(self.REWARDS, MASK, discount=0.9))

    def test_contiguous_runs_of_the_mask_are_separate_responses(self):
        mask = torch.tensor([[True, True, False, True]])
        assert rewards_to_go(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), mask, discount=1.0).tolist() == [
            [3.0, 2.0, 0.0, 8.0]
        ]

    def test_discount_out_of_range_raises(self):
        with pytest.raises(ValueError, match=r"discount=1.5 must be between 0 and 1"):
            rewards_to_go(self.REWARDS, MASK, discount=1.5)


class TestGeneralizedAdvantageEstimate:
    # discount 0.5, lambda 0.5. Row 0:
    #   t  reward  value  next value  delta = r + 0.5 V' - V   A = delta + 0.25 A'   return = A + V
    #   2    1       2        4              1                      0.9375              2.9375
    #   3    0       4        8              0                     -0.25                3.75
    #   4    2       8       16              2                     -1                   7
    #   5    4      16        0            -12                    -12                   4
    # Row 1:
    #   2    3       1        2              3                      3.5                 4.5
    #   3    4       2        0              2                      2                   4
    REWARDS = torch.tensor([[9.0, 9.0, 1.0, 0.0, 2.0, 4.0, 9.0], [9.0, 9.0, 3.0, 4.0, 9.0, 9.0, 9.0]])
    VALUES = torch.tensor([[7.0, 7.0, 2.0, 4.0, 8.0, 16.0, 7.0], [7.0, 7.0, 1.0, 2.0, 7.0, 7.0, 7.0]])
    ADVANTAGES = torch.tensor([[0.0, 0.0, 0.9375, -0.25, -1.0, -12.0, 0.0], [0.0, 0.0, 3.5, 2.0, 0.0, 0.0, 0.0]])
    RETURNS = torch.tensor([[0.0, 0.0, 2.9375, 3.75, 7.0, 4.0, 0.0], [0.0, 0.0, 4.5, 4.0, 0.0, 0.0, 0.0]])

    def test_hand_worked_table(self):
        advantages, returns = generalized_advantage_estimate(
            self.REWARDS, self.VALUES, MASK, discount=0.5, gae_lambda=0.5
        )
        assert torch.equal(advantages, self.ADVANTAGES)
        assert torch.equal(returns, self.RETURNS)

    def test_masked_entries_are_ignored(self):
        advantages, returns = generalized_advantage_estimate(
            self.REWARDS.masked_fill(~MASK, NAN),
            self.VALUES.masked_fill(~MASK, NAN),
            MASK,
            discount=0.5,
            gae_lambda=0.5,
        )
        assert torch.equal(advantages, self.ADVANTAGES)
        assert torch.equal(returns, self.RETURNS)

    def test_lambda_zero_gives_the_td_error(self):
        advantages, _ = generalized_advantage_estimate(self.REWARDS, self.VALUES, MASK, discount=0.5, gae_lambda=0.0)
        assert advantages.tolist() == [[0.0, 0.0, 1.0, 0.0, 2.0, -12.0, 0.0], [0.0, 0.0, 3.0, 2.0, 0.0, 0.0, 0.0]]

    def test_lambda_one_returns_are_the_rewards_to_go(self):
        _, returns = generalized_advantage_estimate(self.REWARDS, self.VALUES, MASK, discount=0.5, gae_lambda=1.0)
        assert returns.tolist() == [[0.0, 0.0, 2.0, 2.0, 4.0, 4.0, 0.0], [0.0, 0.0, 5.0, 4.0, 0.0, 0.0, 0.0]]

    def test_results_are_detached_from_the_critic(self):
        advantages, returns = generalized_advantage_estimate(
            self.REWARDS, self.VALUES.clone().requires_grad_(), MASK, discount=0.5, gae_lambda=0.5
        )
        assert not advantages.requires_grad and not returns.requires_grad

    def test_lambda_out_of_range_raises(self):
        with pytest.raises(ValueError, match=r"gae_lambda=-0.1 must be between 0 and 1"):
            generalized_advantage_estimate(self.REWARDS, self.VALUES, MASK, discount=1.0, gae_lambda=-0.1)


class TestScaleAdvantages:
    # Token advantages; sequence means 1, 3 (group 0) and -1, 5 (group 1).
    ADVANTAGES = torch.tensor([[9.0, 0.0, 2.0], [9.0, 3.0, 9.0], [9.0, -1.0, 9.0], [9.0, 4.0, 6.0]])
    MASK = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 1, 0], [0, 1, 1]]).bool()

    def scaled(self, scale, group_size=2):
        return scale_advantages(self.ADVANTAGES, self.MASK, scale=scale, group_size=group_size)

    def test_none_only_applies_the_mask(self):
        assert self.scaled("none").tolist() == [[0.0, 0.0, 2.0], [0.0, 3.0, 0.0], [0.0, -1.0, 0.0], [0.0, 4.0, 6.0]]

    def test_batch(self):
        # Tokens 0, 2, 3, -1, 4, 6: mean 14/6, mean square 66/6, deviation sqrt(11 - 49/9) = sqrt(50)/3 = 2.3570226
        expected = [[0.0, 0.0, 0.8485281], [0.0, 1.2727922, 0.0], [0.0, -0.4242641, 0.0], [0.0, 1.6970563, 2.5455844]]
        torch.testing.assert_close(self.scaled("batch"), torch.tensor(expected), atol=3e-6, rtol=0.0)

    def test_group(self):
        # Means 1 and 3: deviation sqrt(2), by n - 1. Means -1 and 5: deviation sqrt(18).
        small, large = math.sqrt(2), math.sqrt(18)
        expected = [[0.0, 0.0, 2 / small], [0.0, 3 / small, 0.0], [0.0, -1 / large, 0.0], [0.0, 4 / large, 6 / large]]
        torch.testing.assert_close(self.scaled("group"), torch.tensor(expected), atol=3e-6, rtol=0.0)

    def test_group_ignores_a_sequence_without_tokens(self):
        advantages = torch.tensor([[1.0], [3.0], [100.0]])
        mask = torch.tensor([[True], [True], [False]])
        scaled = scale_advantages(advantages, mask, scale="group", group_size=3)
        expected = torch.tensor([[1.0], [3.0], [0.0]]) / math.sqrt(2)  # over the two others, dividing by n - 1
        torch.testing.assert_close(scaled, expected, atol=4e-6, rtol=0.0)

    def test_a_group_of_one_gives_zero(self):
        assert scale_advantages(torch.ones(2, 1), torch.ones(2, 1).bool(), scale="group", group_size=1).tolist() == [
            [0.0],
            [0.0],
        ]

    def test_a_group_of_equal_values_gives_zeros_and_keeps_other_groups(self):
        advantages = torch.tensor([[0.1, 0.1], [0.1, 0.1], [-2.0, -2.0], [2.0, 2.0]])
        mask = torch.ones(4, 2).bool()
        scaled = scale_advantages(advantages, mask, scale="group", group_size=2)
        expected = torch.tensor([[0.0, 0.0], [0.0, 0.0], [-1.0, -1.0], [1.0, 1.0]]) / math.sqrt(2)
        torch.testing.assert_close(scaled, expected, atol=1e-6, rtol=0.0)

    def test_a_batch_of_equal_values_gives_zeros(self):
        constant = torch.full((4, 3), 1000.1)
        assert scale_advantages(constant, self.MASK, scale="batch", group_size=2).tolist() == [[0.0] * 3] * 4

    @pytest.mark.parametrize("scale", ["none", "batch", "group"])
    def test_masked_entries_are_ignored(self, scale):
        poisoned = self.ADVANTAGES.masked_fill(~self.MASK, NAN)
        assert torch.equal(scale_advantages(poisoned, self.MASK, scale=scale, group_size=2), self.scaled(scale))

    def test_invalid_arguments_raise(self):
        with pytest.raises(ValueError, match="unknown advantage scale 'std': choose none, batch or group"):
            self.scaled("std")
        with pytest.raises(ValueError, match="a batch of 4 sequences is not divisible by group_size=3"):
            self.scaled("group", group_size=3)


class TestWhiten:
    VALUES = torch.tensor([[1.0, 3.0, 99.0], [5.0, 7.0, 99.0]])  # mean 4, variance 5
    MASK = torch.tensor([[1, 1, 0], [1, 1, 0]]).bool()

    def test_hand_worked_values(self):
        expected = torch.tensor([[-1.3416408, -0.4472136, 0.0], [0.4472136, 1.3416408, 0.0]])
        torch.testing.assert_close(whiten(self.VALUES, self.MASK), expected)

    def test_shift_mean_false_keeps_the_mean(self):
        expected = torch.tensor([[2.6583592, 3.5527864, 0.0], [4.4472136, 5.3416408, 0.0]])
        torch.testing.assert_close(whiten(self.VALUES, self.MASK, shift_mean=False), expected)

    def test_equal_values_give_zeros_even_far_from_zero(self):
        whitened = whiten(torch.full((7,), 1000.1), torch.ones(7).bool())
        assert whitened.dtype == torch.float32
        torch.testing.assert_close(whitened, torch.zeros(7), atol=1e-6, rtol=0.0)

    def test_masked_entries_are_ignored(self):
        poisoned = self.VALUES.masked_fill(~self.MASK, NAN)
        assert torch.equal(whiten(poisoned, self.MASK), whiten(self.VALUES, self.MASK))


class TestRunningStatistics:
    def test_uneven_chunks_match_numpy_on_all_values(self):
        # Large mean, small variance: the naive mean of squares would lose all precision in float32.
        values = np.random.default_rng(0).normal(1e4, 0.5, size=1000)
        statistics = RunningStatistics()
        for chunk in np.split(values, [1, 2, 9, 9, 500, 997]):  # one chunk is empty
            statistics.update(torch.from_numpy(chunk))
        assert statistics.count == 1000
        assert statistics.mean == pytest.approx(values.mean(), rel=1e-12)
        assert statistics.deviation == pytest.approx(values.std(), rel=1e-9)

    def test_by_hand(self):
        statistics = RunningStatistics()
        statistics.update(torch.tensor([[2.0, 4.0]]))
        assert (statistics.mean, statistics.deviation) == (3.0, 1.0)
        statistics.update(torch.tensor([9.0]))  # 2, 4, 9: mean 5, squares 9 + 1 + 16 = 26
        assert statistics.mean == pytest.approx(5.0)
        assert statistics.deviation == pytest.approx(math.sqrt(26 / 3))

    def test_state_survives_json_exactly(self):
        first, second = RunningStatistics(), RunningStatistics()
        first.update(torch.tensor([0.1, 0.7, -3.3]))
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for statistics in (first, second):
            statistics.update(torch.tensor([1.0 / 3.0]))
        assert second.state_dict() == first.state_dict()
        assert second.count == 4

    def test_a_non_finite_value_raises_and_changes_nothing(self):
        statistics = RunningStatistics()
        statistics.update(torch.tensor([1.0, 3.0]))
        before = statistics.state_dict()
        with pytest.raises(ValueError, match="received a non-finite value"):
            statistics.update(torch.tensor([1.0, NAN]))
        assert statistics.state_dict() == before
