"""Scorers whose gradient is known: a linear one, and a quadratic one whose penalty has a gradient of its own."""

import pytest
import torch

from rlgaf_ray.objectives.gradient_penalty import r1_penalty, squared_gradient_norms, unit_norm_penalty

MASK = torch.tensor([[False, True, True], [False, True, False]])
EMBEDDINGS = torch.tensor([[[9.0, 9.0], [1.0, 2.0], [0.0, -1.0]], [[9.0, 9.0], [3.0, 0.0], [9.0, 9.0]]])


def test_a_linear_scorer():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)  # |w|^2 = 25
    embeddings = EMBEDDINGS.clone().requires_grad_()
    mean = ((embeddings @ weight) * MASK).sum(1) / MASK.sum(1)  # gradient w / 2 at two positions, w at one
    norms = squared_gradient_norms(mean, embeddings, MASK)
    assert norms.tolist() == pytest.approx([2 * 25 / 4, 25.0])
    penalty = r1_penalty(norms)
    assert penalty.item() == pytest.approx((12.5 + 25.0) / 2 / 2)
    (gradient,) = torch.autograd.grad(penalty, weight, retain_graph=True)
    # the penalty is (1/2 + 1) |w|^2 / 4: its gradient is 3/4 w
    torch.testing.assert_close(gradient, 0.75 * weight.detach())
    # (sqrt(12.5) - 1)^2 and (5 - 1)^2
    assert unit_norm_penalty(norms).item() == pytest.approx((2.5355339**2 + 16.0) / 2)


def test_the_prompt_is_left_out():
    embeddings = EMBEDDINGS.clone().requires_grad_()
    logits = 100 * embeddings[:, 0].sum(1) + embeddings[:, 1].sum(1)  # steep in the prompt, 1 in the response
    assert squared_gradient_norms(logits, embeddings, MASK).tolist() == [2.0, 2.0]


def test_a_quadratic_scorer_against_the_formula():
    """D = s * sum e^2 / 2 has the gradient s e and R1 = s^2 mean |e|^2 / 2; its derivative in s: s mean |e|^2."""
    slope = torch.tensor(2.0, requires_grad=True)
    embeddings = EMBEDDINGS.clone().requires_grad_()
    logits = slope * (embeddings.square().sum(-1) * MASK).sum(1) / 2
    penalty = r1_penalty(squared_gradient_norms(logits, embeddings, MASK))  # |e|^2: 1 + 4 + 1 = 6, and 9
    assert penalty.item() == pytest.approx(4 * 7.5 / 2)
    penalty.backward()
    assert slope.grad is not None and slope.grad.item() == pytest.approx(2 * 7.5)


def test_a_flat_scorer_has_finite_gradients():
    weight = torch.zeros(2, requires_grad=True)
    embeddings = EMBEDDINGS.clone().requires_grad_()
    norms = squared_gradient_norms(((embeddings @ weight) * MASK).sum(1), embeddings, MASK)
    assert unit_norm_penalty(norms).item() == pytest.approx(1.0, abs=1e-5)
    unit_norm_penalty(norms).backward()
    assert weight.grad is not None and bool(weight.grad.isfinite().all())
