import math

import pytest
import torch

from rlgaf_ray.objectives.kl import adaptive_kl_coefficient, exact_entropy, exact_kl, kl_estimate

POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
KL_POLICY_REFERENCE = 0.3600624406359049  # 0.5 ln 2.5 + 0.3 ln 1.5 + 0.2 ln(1/3)


def expectation(estimator):
    """Expected value of the estimator over the policy's tokens."""
    return float((POLICY * kl_estimate(POLICY.log(), REFERENCE.log(), estimator=estimator)).sum())


def expected_gradient(estimator):
    """Expected gradient of the estimator as a loss w.r.t. the policy's logits, with the sampled tokens fixed."""
    logits = POLICY.log().requires_grad_()
    estimates = kl_estimate(logits.log_softmax(0), REFERENCE.log(), estimator=estimator)
    (gradient,) = torch.autograd.grad((POLICY * estimates).sum(), logits)
    return gradient


def exact_gradient(divergence):
    logits = POLICY.log().requires_grad_()
    (gradient,) = torch.autograd.grad(divergence(logits.log_softmax(0)), logits)
    return gradient


def test_hand_worked_values():
    policy, reference = torch.tensor([math.log(0.5), -2.0]), torch.tensor([math.log(0.25), -1.0])
    # d = ln 2 and -1
    torch.testing.assert_close(kl_estimate(policy, reference, estimator="k1"), torch.tensor([0.6931472, -1.0]))
    torch.testing.assert_close(kl_estimate(policy, reference, estimator="k2"), torch.tensor([0.2402265, 0.5]))
    torch.testing.assert_close(kl_estimate(policy, reference, estimator="k3"), torch.tensor([0.1931472, 0.7182818]))


def test_k3_is_precise_for_nearly_equal_log_probs():
    # d = 1e-4: k3 = d^2 / 2 - d^3 / 6 + ... = 5e-9, which exp(-d) - 1 would round away in float32.
    distance = kl_estimate(torch.tensor([1e-4]), torch.tensor([0.0]), estimator="k3")
    assert distance.item() == pytest.approx(5e-9, rel=0.01)


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    assert expectation("k1") == pytest.approx(KL_POLICY_REFERENCE, abs=1e-12)
    assert expectation("k3") == pytest.approx(KL_POLICY_REFERENCE, abs=1e-12)
    # 0.5 (0.5 ln^2 2.5 + 0.3 ln^2 1.5 + 0.2 ln^2 3) = 0.5 (0.4197944 + 0.0493206 + 0.2413898)
    assert expectation("k2") == pytest.approx(0.3552524, abs=1e-6)


def test_expected_gradients_as_losses():
    torch.testing.assert_close(expected_gradient("k1"), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0.0)
    reverse = exact_gradient(lambda logprobs: (logprobs.exp() * (logprobs - REFERENCE.log())).sum())
    torch.testing.assert_close(expected_gradient("k2"), reverse)
    forward = exact_gradient(lambda logprobs: (REFERENCE * (REFERENCE.log() - logprobs)).sum())
    torch.testing.assert_close(expected_gradient("k3"), forward)
    # The gradient of KL(reference || policy) in the logits is policy - reference.
    torch.testing.assert_close(expected_gradient("k3"), torch.tensor([0.3, 0.1, -0.4], dtype=torch.float64))


def test_unknown_estimator_raises_with_the_choices():
    with pytest.raises(ValueError, match="unknown KL estimator 'k4': choose k1, k2 or k3"):
        kl_estimate(torch.zeros(1), torch.zeros(1), estimator="k4")  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        (6.0, 0.05),  # on target
        (6.6, 0.05 * 1.01),  # error 0.1 times 1000 / 10000
        (60.0, 0.05 * 1.02),  # error clipped to 0.2
        (0.0, 0.05 * 0.98),  # and to -0.2
        (-3.0, 0.05 * 0.98),  # a k1 estimate may be negative
    ],
)
def test_adaptive_coefficient_by_hand(observed, expected):
    coefficient = adaptive_kl_coefficient(0.05, observed_kl=observed, target=6.0, num_samples=1000, horizon=10_000)
    assert coefficient == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": 0.0}, "needs a positive target and horizon, got target=0.0"),
        ({"horizon": 0}, "needs a positive target and horizon, got target=6.0, horizon=0"),
        ({"observed_kl": math.nan}, "the observed KL is nan"),
        ({"num_samples": 50_000}, "must be below 5 x horizon=10000: raise the horizon"),
    ],
)
def test_adaptive_coefficient_raises(changed, message):
    arguments = {"observed_kl": 6.0, "target": 6.0, "num_samples": 1000, "horizon": 10_000} | changed
    with pytest.raises(ValueError, match=message):
        adaptive_kl_coefficient(0.05, **arguments)


class TestExact:
    def test_values_by_hand(self):
        assert float(exact_kl(POLICY.log(), REFERENCE.log())) == pytest.approx(KL_POLICY_REFERENCE)
        assert float(exact_kl(POLICY.log(), POLICY.log())) == 0.0
        halves = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]).log()
        assert exact_entropy(halves).tolist() == pytest.approx([1.5 * math.log(2), math.log(3)])

    def test_the_gradient_matches_the_sum_over_the_vocabulary(self):
        found = exact_gradient(lambda logprobs: exact_kl(logprobs, REFERENCE.log()))
        difference = (POLICY / REFERENCE).log()
        torch.testing.assert_close(found, POLICY * (difference - KL_POLICY_REFERENCE))

    def test_a_masked_token_adds_nothing(self):
        logits = torch.tensor([0.3, -math.inf, 1.2], requires_grad=True)
        reference = torch.tensor([0.1, -math.inf, 0.2]).log_softmax(0)
        distance = exact_kl(logits.log_softmax(0), reference)
        kept = exact_kl(logits[[0, 2]].log_softmax(0), reference[[0, 2]])
        torch.testing.assert_close(distance, kept)
        distance.backward()
        assert logits.grad is not None
        assert bool(logits.grad.isfinite().all()) and float(logits.grad[1]) == 0.0
        entropy = exact_entropy(logits.detach().log_softmax(0))
        torch.testing.assert_close(entropy, exact_entropy(logits.detach()[[0, 2]].log_softmax(0)))
