import math

import pytest
import torch

from rlgaf_ray.objectives.advantages import scale_advantages
from rlgaf_ray.objectives.baselines import (
    batch_mean_baseline,
    group_mean_baseline,
    leave_one_out_baseline,
    moving_average,
    other_lengths,
    past_scores,
    position_mean_baseline,
)

NAN = math.nan
# Two prompt columns, responses of four and two tokens, right padding.
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0, 0]]).bool()


class TestBaselines:
    def test_leave_one_out(self):
        rewards = torch.tensor([1.0, 2.0, 6.0, -1.0, 0.0, 3.0])
        assert leave_one_out_baseline(rewards, group_size=3).tolist() == [4.0, 3.5, 1.5, 1.5, 1.0, -0.5]
        assert leave_one_out_baseline(rewards, group_size=2).tolist() == [2.0, 1.0, -1.0, 6.0, 3.0, 0.0]

    def test_leave_one_out_of_equal_rewards_is_exactly_that_reward(self):
        rewards = torch.full((6,), 0.1)
        assert torch.equal(leave_one_out_baseline(rewards, group_size=3), rewards)

    def test_leave_one_out_raises_on_invalid_groups(self):
        with pytest.raises(ValueError, match=r"at least 2 samples per prompt, got 1: raise rollout.samples_per_prompt"):
            leave_one_out_baseline(torch.zeros(4), group_size=1)
        with pytest.raises(ValueError, match=r"a batch of 4 sequences is not divisible by group_size=3"):
            leave_one_out_baseline(torch.zeros(4), group_size=3)

    def test_moving_average(self):
        average = moving_average(None, 4.0, decay=0.75)
        assert average == 4.0
        average = moving_average(average, 8.0, decay=0.75)
        assert average == 5.0
        assert moving_average(average, 1.0, decay=0.75) == 4.0
        assert moving_average(0.0, 3.0, decay=0.5) == 1.5  # a previous value of 0 is not None

    def test_moving_average_raises_on_invalid_decay(self):
        with pytest.raises(ValueError, match=r"decay=2.0 must be between 0 and 1"):
            moving_average(1.0, 1.0, decay=2.0)


class TestReinforceVariants:
    """Two prompts, three samples each: rewards 1, 2, 6 and 4, 4, 4."""

    REWARDS = torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0, 4.0])
    ONE_TOKEN = torch.ones(6, 1, dtype=torch.bool)

    def test_grpo(self):
        """Mean 3; deviation sqrt((4 + 1 + 9) / 2) = 2.6457513, dividing by n - 1; equal rewards give zeros."""
        baseline = group_mean_baseline(self.REWARDS, group_size=3)
        assert baseline.tolist() == [3.0, 3.0, 3.0, 4.0, 4.0, 4.0]
        centred = (self.REWARDS - baseline)[:, None]
        advantages = scale_advantages(centred, self.ONE_TOKEN, scale="group", group_size=3)
        expected = [-2 / 2.6457513, -1 / 2.6457513, 3 / 2.6457513, 0.0, 0.0, 0.0]
        assert advantages.flatten().tolist() == pytest.approx(expected, abs=1e-5)

    def test_rloo_is_grpo_without_the_deviation_times_n_over_n_minus_1(self):
        left_out = self.REWARDS - leave_one_out_baseline(self.REWARDS, group_size=3)
        assert left_out.tolist() == [-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]
        assert torch.allclose(left_out, 1.5 * (self.REWARDS - group_mean_baseline(self.REWARDS, group_size=3)))

    def test_reinforce_plus_plus(self):
        """Token returns 1, 1, 5 and 5: mean 3, deviation 2."""
        mask = torch.tensor([[True, True], [True, False], [True, False]])
        returns = torch.tensor([[1.0, 1.0], [5.0, 99.0], [5.0, 99.0]])
        centred = (returns - batch_mean_baseline(returns, mask)) * mask
        advantages = scale_advantages(centred, mask, scale="batch", group_size=1)
        assert advantages.flatten().tolist() == pytest.approx([-1.0, -1.0, 1.0, 0.0, 1.0, 0.0], abs=1e-5)


class TestPositionMean:
    def test_averages_the_other_responses_that_reach_a_position(self):
        returns = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, NAN], [7.0, 9.0, 8.0]])
        mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]]).bool()
        expected = [[5.5, 7.0, 8.0], [4.0, 5.5, 0.0], [2.5, 3.5, 3.0]]
        assert position_mean_baseline(returns, mask).tolist() == expected

    def test_the_tail_of_the_longest_response_uses_the_last_baseline(self):
        """Lengths 3, 3 and 8, scores 1, 1 and -5: every token of the long response is 6 below the other two."""
        mask = torch.arange(8) < torch.tensor([3, 3, 8])[:, None]
        returns = torch.tensor([1.0, 1.0, -5.0])[:, None] * mask
        advantages = (returns - position_mean_baseline(returns, mask)) * mask
        assert advantages[2].tolist() == [-6.0] * 8
        assert advantages[:2, :3].tolist() == [[3.0] * 3] * 2  # 1 - (1 - 5) / 2

    def test_positions_count_from_the_start_of_each_response(self):
        returns = torch.tensor([[1.0, 2.0, NAN, NAN], [NAN, NAN, 30.0, 40.0]])  # prompts of zero and two tokens
        mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]).bool()
        assert position_mean_baseline(returns, mask).tolist() == [[30.0, 40.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0]]

    def test_a_single_response_has_a_zero_baseline(self):
        assert position_mean_baseline(torch.ones(1, 3), torch.ones(1, 3).bool()).tolist() == [[0.0, 0.0, 0.0]]

    def test_equal_returns_give_advantages_of_exactly_zero(self):
        returns = torch.full((7, 3), 1000.1)
        assert torch.equal(position_mean_baseline(returns, torch.ones(7, 3).bool()), returns)


class TestPastScores:
    def test_weigh_tokens_equally_in_long_and_short_responses(self):
        """Scores 4, 8, 12, 0 averaged over four tokens, and 6, 2 over two."""
        parts = torch.tensor([[NAN, 9.0, 1.0, 2.0, 3.0, 0.0, NAN], [9.0, NAN, 3.0, 1.0, NAN, 9.0, 9.0]])
        expected = [[0.0, 0.0, 0.0, 4.0, 12.0, 24.0, 0.0], [0.0, 0.0, 0.0, 6.0, 0.0, 0.0, 0.0]]
        assert past_scores(parts, MASK, MASK.sum(1)).tolist() == expected
        assert other_lengths(MASK.sum(1)).tolist() == [[2.0], [4.0]]
        assert other_lengths(torch.tensor([5])).tolist() == [[math.inf]]

    def test_do_not_depend_on_a_following_end_of_text(self):
        """Both start with a token of score 1. The first then ends with an unscored end of text: 1 of 1 token."""
        parts = torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
        mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
        past = past_scores(parts, mask, num_read=torch.tensor([1, 3]))
        torch.testing.assert_close(past, torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 2.0]]))
