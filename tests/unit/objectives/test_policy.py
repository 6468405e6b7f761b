import math

import pytest
import torch

from rlgaf_ray.objectives.policy import (
    language_model_loss,
    masked_average,
    ppo_policy_loss,
    ppo_value_loss,
    reinforce_loss,
    truncated_importance_weights,
)

NAN = math.nan
# One prompt column, responses of two tokens and one token.
MASK = torch.tensor([[0, 1, 1], [0, 1, 0]]).bool()


def row(*values):
    return torch.tensor([values])


def whole(values):
    return torch.ones_like(values).bool()


class TestMaskedAverage:
    VALUES = torch.tensor([[9.0, 1.0, 3.0], [9.0, 8.0, 9.0]])

    def test_token(self):
        assert masked_average(self.VALUES, MASK, average="token").item() == 4.0  # (1 + 3 + 8) / 3

    def test_sequence(self):
        assert masked_average(self.VALUES, MASK, average="sequence").item() == 5.0  # (2 + 8) / 2

    def test_sequence_without_tokens_is_not_counted(self):
        mask = torch.tensor([[0, 1, 1], [0, 0, 0]]).bool()
        assert masked_average(self.VALUES, mask, average="sequence").item() == 2.0

    def test_sums(self):
        assert masked_average(self.VALUES, MASK, average="sequence_sum").item() == 6.0  # (4 + 8) / 2
        assert masked_average(self.VALUES, MASK, average="constant", max_tokens=4).item() == 1.5

    @pytest.mark.parametrize(
        ("average", "expected"),
        [
            ("token", [[0, 1 / 3, 1 / 3], [0, 1 / 3, 0]]),
            ("sequence", [[0, 0.25, 0.25], [0, 0.5, 0]]),
            ("sequence_sum", [[0, 0.5, 0.5], [0, 0.5, 0]]),
            ("constant", [[0, 0.1, 0.1], [0, 0.1, 0]]),
        ],
    )
    def test_masked_entries_are_ignored_and_get_no_gradient(self, average, expected):
        values = self.VALUES.masked_fill(~MASK, NAN).requires_grad_()
        masked_average(values, MASK, average=average, max_tokens=5).backward()
        torch.testing.assert_close(values.grad, torch.tensor(expected))

    @pytest.mark.parametrize("average", ["token", "sequence", "sequence_sum", "constant"])
    def test_empty_mask_gives_zero(self, average):
        assert masked_average(self.VALUES, torch.zeros(2, 3).bool(), average=average, max_tokens=5).item() == 0.0

    def test_unknown_average_raises_with_the_choices(self):
        with pytest.raises(ValueError, match="unknown average 'batch': choose token, sequence, sequence_sum or const"):
            masked_average(self.VALUES, MASK, average="batch")  # type: ignore[arg-type]  # on purpose


class TestReinforceLoss:
    LOGPROBS = torch.tensor([[9.0, -1.0, -2.0], [9.0, -0.5, 9.0]])
    ADVANTAGES = torch.tensor([[9.0, 2.0, -3.0], [9.0, 4.0, 9.0]])

    @pytest.mark.parametrize(("average", "expected"), [("token", -2 / 3), ("sequence", 0.0)])
    def test_hand_worked_values(self, average, expected):
        # Products -2, 6 and -2: tokens -(2/3); sequences -(2 + -2) / 2.
        loss, metrics = reinforce_loss(self.LOGPROBS, self.ADVANTAGES, MASK, average=average)
        assert loss.item() == pytest.approx(expected)
        assert metrics["policy_loss"].item() == pytest.approx(expected)
        assert "importance_weight" not in metrics

    def test_gradient_is_the_weighted_advantage_for_the_policy_only(self):
        logprobs, advantages = self.LOGPROBS.clone().requires_grad_(), self.ADVANTAGES.clone().requires_grad_()
        weights = torch.tensor([[9.0, 0.5, 1.0], [9.0, 3.0, 9.0]]).requires_grad_()
        loss, metrics = reinforce_loss(logprobs, advantages, MASK, average="token", importance_weights=weights)
        loss.backward()
        torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, -1 / 3, 1.0], [0.0, -4.0, 0.0]]))
        assert advantages.grad is None and weights.grad is None
        assert metrics["importance_weight"].item() == 1.5
        assert not any(value.requires_grad for value in metrics.values())

    def test_masked_entries_change_neither_value_nor_gradient(self):
        logprobs = self.LOGPROBS.masked_fill(~MASK, -math.inf).requires_grad_()
        weights = torch.ones(2, 3).masked_fill(~MASK, NAN)
        loss, _ = reinforce_loss(
            logprobs, self.ADVANTAGES.masked_fill(~MASK, NAN), MASK, average="token", importance_weights=weights
        )
        loss.backward()
        assert loss.item() == pytest.approx(-2 / 3)
        torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, -2 / 3, 1.0], [0.0, -4 / 3, 0.0]]))


class TestPPOPolicyLoss:
    RATIOS = row(1.0, 1.5, 1.5, 0.5, 0.5, 1.1)
    ADVANTAGES = row(2.0, 1.0, -1.0, 1.0, -1.0, 3.0)
    # min(r A, clip(r, 0.8, 1.2) A): clipped at 1.5 with a positive and at 0.5 with a negative advantage.
    OBJECTIVE = row(2.0, 1.2, -1.5, 0.5, -0.8, 3.3)

    def test_hand_worked_values(self):
        old = row(-1.0, -2.0, -3.0, -1.5, -0.5, -2.0)
        logprobs = (old + self.RATIOS.log()).requires_grad_()
        loss, metrics = ppo_policy_loss(logprobs, old, self.ADVANTAGES, whole(old), clip_range=0.2, average="token")
        assert loss.item() == pytest.approx(-4.7 / 6, rel=1e-5)
        assert metrics["policy_loss"].item() == pytest.approx(-4.7 / 6, rel=1e-5)
        assert metrics["clip_fraction"].item() == pytest.approx(2 / 6)
        assert metrics["ratio"].item() == pytest.approx(6.1 / 6)
        # r - 1 - ln r: 0; 0.0945349 twice; 0.1931472 twice; 0.0046898
        assert metrics["approximate_kl"].item() == pytest.approx(0.5800540 / 6, rel=1e-4)
        loss.backward()
        # d(r A) / d log pi = r A where unclipped, else 0.
        expected = -row(2.0, 0.0, -1.5, 0.5, 0.0, 3.3) / 6
        torch.testing.assert_close(logprobs.grad, expected, atol=1e-6, rtol=1e-5)

    def test_importance_weights_multiply_the_objective(self):
        old = torch.zeros_like(self.RATIOS)
        weights = row(1.0, 2.0, 1.0, 0.5, 1.0, 1.0)
        loss, metrics = ppo_policy_loss(
            self.RATIOS.log(),
            old,
            self.ADVANTAGES,
            whole(old),
            clip_range=0.2,
            average="sequence",
            importance_weights=weights,
        )
        assert loss.item() == pytest.approx(-(2.0 + 2.4 - 1.5 + 0.25 - 0.8 + 3.3) / 6, rel=1e-5)
        assert metrics["importance_weight"].item() == pytest.approx(6.5 / 6)

    @pytest.mark.parametrize("average", ["token", "sequence"])
    def test_at_ratio_one_the_gradient_is_reinforce(self, average):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, 3, 5, generator=generator)
        advantages = torch.randn(2, 3, generator=generator)
        weights = torch.rand(2, 3, generator=generator)
        gradients = []
        for algorithm in ("ppo", "reinforce"):
            leaf = logits.clone().requires_grad_()
            logprobs = leaf.log_softmax(-1)[..., 1]
            if algorithm == "ppo":
                old = logprobs.detach()
                loss, metrics = ppo_policy_loss(
                    logprobs, old, advantages, MASK, clip_range=0.2, average=average, importance_weights=weights
                )
                assert metrics["clip_fraction"].item() == 0.0
                assert metrics["approximate_kl"].item() == 0.0
            else:
                loss, _ = reinforce_loss(logprobs, advantages, MASK, average=average, importance_weights=weights)
            gradients.append(torch.autograd.grad(loss, leaf)[0])
        assert gradients[0].abs().max() > 0.01
        torch.testing.assert_close(gradients[0], gradients[1])

    def test_sequence_ratio_is_the_geometric_mean_of_its_tokens(self):
        # Token ratios 4 and 1/4: geometric mean 1; 2.25 and 1: 1.5, clipped to 1.2. The last column is padding.
        mask = torch.tensor([[True, True, False], [True, True, False]])
        logprobs = torch.tensor([[4.0, 0.25, 9.0], [2.25, 1.0, 9.0]]).log().requires_grad_()
        advantages = torch.tensor([[1.0, 2.0, 9.0], [1.0, 3.0, 9.0]])
        loss, metrics = ppo_policy_loss(
            logprobs, torch.zeros(2, 3), advantages, mask, clip_range=0.2, average="token", ratio_level="sequence"
        )
        assert loss.item() == pytest.approx(-(1 + 2 + 1.2 + 3.6) / 4, rel=1e-5)
        assert metrics["clip_fraction"].item() == 0.5
        loss.backward()
        # k3 of the token ratios: 4 - 1 - ln 4 and 1/4 - 1 + ln 4; 2.25 - 1 - ln 2.25 and 0
        expected = (3 - math.log(4) - 0.75 + math.log(4) + 1.25 - math.log(2.25)) / 4
        assert metrics["approximate_kl"].item() == pytest.approx(expected, rel=1e-5)
        # d/d log pi of the mean: half of the response's advantages each, zero where clipped
        torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.375, -0.375, 0.0], [0.0, 0.0, 0.0]]))

    def test_an_overflow_outside_the_response_leaves_the_gradient_finite(self):
        logprobs = torch.tensor([[500.0, -1.0, -2.0], [500.0, -0.5, NAN]]).requires_grad_()
        old = torch.tensor([[-500.0, -1.0, -2.0], [-500.0, -0.5, 0.0]])
        advantages = torch.tensor([[NAN, 3.0, 6.0], [NAN, 9.0, NAN]])
        loss, _ = ppo_policy_loss(logprobs, old, advantages, MASK, clip_range=0.2, average="token")
        loss.backward()
        torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, -1.0, -2.0], [0.0, -3.0, 0.0]]))

    @pytest.mark.parametrize("ratio_level", ["token", "sequence"])
    def test_a_ratio_that_would_overflow_gets_no_gradient(self, ratio_level):
        """e^89 is infinite in float32. A = 1 is clipped, and A = 0 has no gradient."""
        old = torch.full((3, 1), -89.0)
        logprobs = torch.zeros(3, 1, requires_grad=True)
        advantages = torch.tensor([[1.0], [0.0], [-1.0]])
        loss, metrics = ppo_policy_loss(
            logprobs, old, advantages, whole(old), clip_range=0.2, average="token", ratio_level=ratio_level
        )
        loss.backward()
        assert loss.item() == pytest.approx((-1.2 + math.exp(20)) / 3)
        assert logprobs.grad is not None and logprobs.grad.tolist() == [[0.0], [0.0], [0.0]]
        assert math.isfinite(metrics["approximate_kl"].item())

    def test_the_upper_clip_range_may_be_wider(self):
        old = torch.zeros_like(self.RATIOS)
        loss, metrics = ppo_policy_loss(
            self.RATIOS.log(),
            old,
            self.ADVANTAGES,
            whole(old),
            clip_range=0.2,
            clip_range_high=0.4,
            average="token",
        )
        assert loss.item() == pytest.approx(-(2.0 + 1.4 - 1.5 + 0.5 - 0.8 + 3.3) / 6, rel=1e-5)
        assert metrics["clip_fraction"].item() == pytest.approx(2 / 6)
        with pytest.raises(ValueError, match=r"clip_range=0.0 must be positive"):
            ppo_policy_loss(old, old, old, whole(old), clip_range=0.2, clip_range_high=0.0, average="token")

    def test_weights_outside_the_response_leave_the_gradient_finite(self):
        logprobs = torch.tensor([[NAN, -1.0, -2.0], [NAN, -0.5, NAN]]).requires_grad_()
        weights = torch.ones(2, 3).masked_fill(~MASK, NAN)
        loss, _ = ppo_policy_loss(
            logprobs,
            logprobs.detach(),
            torch.ones(2, 3),
            MASK,
            clip_range=0.2,
            average="token",
            importance_weights=weights,
        )
        loss.backward()
        torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, -1 / 3, -1 / 3], [0.0, -1 / 3, 0.0]]))

    def test_only_the_policy_gets_a_gradient(self):
        logprobs, old, advantages = (torch.zeros(1, 2, requires_grad=True) for _ in range(3))
        mask = torch.ones(1, 2).bool()
        ppo_policy_loss(logprobs, old, advantages, mask, clip_range=0.2, average="token")[0].backward()
        assert logprobs.grad is not None and old.grad is None and advantages.grad is None

    def test_a_clip_range_of_zero_raises(self):
        zeros = torch.zeros(1, 2)
        with pytest.raises(ValueError, match=r"clip_range=0.0 must be positive"):
            ppo_policy_loss(zeros, zeros, zeros, whole(zeros), clip_range=0.0, average="token")


class TestPPOValueLoss:
    # V_old, V, R, V_clip for clip 0.5, max of the two squared errors:
    #   1.0  1.2  2.0   1.2   0.64          inside the clip range
    #   1.0  3.0  3.0   1.5   2.25          at the target, but clipped: no gradient
    #   1.0  3.0  0.0   1.5   9.00          beyond the clip range, away from the target: still pulled back
    #   0.0 -2.0  1.0  -0.5   9.00          the same in the other direction
    OLD, VALUES, RETURNS = row(1.0, 1.0, 1.0, 0.0), row(1.2, 3.0, 3.0, -2.0), row(2.0, 3.0, 0.0, 1.0)

    def test_hand_worked_values(self):
        values = self.VALUES.clone().requires_grad_()
        loss, metrics = ppo_value_loss(
            values, self.OLD, self.RETURNS, whole(self.OLD), value_clip_range=0.5, average="token"
        )
        assert loss.item() == pytest.approx((0.64 + 2.25 + 9.0 + 9.0) / 8)
        assert metrics["value_loss"].item() == pytest.approx(loss.item())
        assert metrics["value_clip_fraction"].item() == 0.25
        # R - V = 0.8, 0, -3, 3: variance 4.62 (mean 0.2); R: variance 1.25
        assert metrics["explained_variance"].item() == pytest.approx(1 - 4.62 / 1.25, rel=1e-5)
        loss.backward()
        torch.testing.assert_close(values.grad, row(-0.8, 0.0, 3.0, -3.0) / 4)

    def test_explained_variance_of_a_perfect_critic_and_of_a_constant_return(self):
        mask = whole(self.RETURNS)
        _, perfect = ppo_value_loss(self.RETURNS, self.OLD, self.RETURNS, mask, value_clip_range=9.0, average="token")
        assert perfect["explained_variance"].item() == 1.0
        flat = torch.ones_like(self.RETURNS)
        _, constant = ppo_value_loss(self.VALUES, self.OLD, flat, mask, value_clip_range=9.0, average="token")
        assert constant["explained_variance"].item() == 0.0

    def test_masked_entries_are_ignored(self):
        values = torch.tensor([[NAN, 1.0, 2.0], [NAN, 0.0, NAN]]).requires_grad_()
        old = torch.tensor([[NAN, 1.0, 2.0], [NAN, 0.0, NAN]])
        returns = torch.tensor([[NAN, 2.0, 4.0], [NAN, 2.0, NAN]])
        loss, metrics = ppo_value_loss(values, old, returns, MASK, value_clip_range=1.0, average="sequence")
        assert loss.item() == pytest.approx((2.5 + 4.0) / 4)
        loss.backward()
        torch.testing.assert_close(values.grad, torch.tensor([[0.0, -0.25, -0.5], [0.0, -1.0, 0.0]]))
        assert math.isfinite(metrics["explained_variance"].item())

    def test_a_clip_range_of_zero_raises(self):
        with pytest.raises(ValueError, match=r"value_clip_range=0.0 must be positive"):
            ppo_value_loss(self.VALUES, self.OLD, self.RETURNS, whole(self.OLD), value_clip_range=0.0, average="token")


class TestImportanceWeights:
    def test_the_ratio_is_capped(self):
        policy = row(math.log(0.5), math.log(0.2), math.log(0.9), 0.0).requires_grad_()
        behaviour = row(math.log(0.25), math.log(0.4), math.log(0.1), 0.0)
        weights = truncated_importance_weights(policy, behaviour, cap=3.0)
        torch.testing.assert_close(weights, row(2.0, 0.5, 3.0, 1.0))  # 9 is capped at 3
        assert not weights.requires_grad

    def test_the_mask_drops_ratios_above_the_cap(self):
        policy = row(math.log(0.5), math.log(0.2), math.log(0.9), 0.0).requires_grad_()
        behaviour = row(math.log(0.25), math.log(0.4), math.log(0.1), 0.0)
        weights = truncated_importance_weights(policy, behaviour, cap=3.0, bound="mask")
        torch.testing.assert_close(weights, row(2.0, 0.5, 0.0, 1.0))  # 9 is dropped
        assert not weights.requires_grad
        assert truncated_importance_weights(row(0.0), row(-1000.0), cap=2.0, bound="mask").tolist() == [[0.0]]

    def test_hand_worked_correction(self):
        """Tokens sampled with probability 1/2 each, now 3/4 and 1/4: weights 1.5 and 0.5. Advantages 1 and -1.

        loss = -(1.5 * log 3/4 - 0.5 * log 1/4) / 2; masking the first token removes its term.
        """
        policy, behaviour = row(math.log(0.75), math.log(0.25)), row(math.log(0.5), math.log(0.5))
        mask, advantages = whole(policy), row(1.0, -1.0)
        weights = truncated_importance_weights(policy, behaviour, cap=1.6, bound="mask")
        loss, metrics = reinforce_loss(policy, advantages, mask, average="token", importance_weights=weights)
        assert loss.item() == pytest.approx(-(1.5 * math.log(0.75) - 0.5 * math.log(0.25)) / 2)
        assert metrics["importance_weight"].item() == pytest.approx(1.0)
        weights = truncated_importance_weights(policy, behaviour, cap=1.4, bound="mask")
        loss, metrics = reinforce_loss(policy, advantages, mask, average="token", importance_weights=weights)
        assert loss.item() == pytest.approx(0.5 * math.log(0.25) / 2)  # still a mean over two tokens
        assert metrics["importance_weight"].item() == pytest.approx(0.25)

    def test_a_mask_below_one_and_unknown_bounds_raise(self):
        with pytest.raises(ValueError, match=r"a mask at 0.5 would drop even tokens of an unchanged policy"):
            truncated_importance_weights(row(0.0), row(0.0), cap=0.5, bound="mask")
        with pytest.raises(ValueError, match=r"unknown bound 'none': choose cap or mask"):
            truncated_importance_weights(row(0.0), row(0.0), cap=2.0, bound="none")  # type: ignore[arg-type]

    def test_an_overflow_is_capped(self):
        assert truncated_importance_weights(row(0.0), row(-1000.0), cap=2.0).tolist() == [[2.0]]

    def test_a_cap_of_zero_raises(self):
        with pytest.raises(ValueError, match=r"cap of importance weights is 0.0: set a positive number such as 2"):
            truncated_importance_weights(row(0.0), row(0.0), cap=0.0)


def test_language_model_loss_is_the_mean_over_tokens():
    logprobs = torch.tensor([[9.0, -1.0, -2.0], [9.0, -6.0, 9.0]])
    assert language_model_loss(logprobs, MASK).item() == 3.0
