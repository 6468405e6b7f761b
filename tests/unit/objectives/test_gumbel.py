from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare, kstest

from rlgaf_ray.objectives.gumbel import (
    annealed_temperature,
    conditional_gumbel_perturbed,
    gumbel_perturbed,
    soft_embedding,
    straight_through_embeddings,
    straight_through_one_hot,
)

ODDS = torch.tensor([1.0, 2.0, 5.0])  # probabilities 1/8, 2/8, 5/8
NUM_DRAWS = 40_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows() -> torch.Tensor:
    return ODDS.log().expand(NUM_DRAWS, 3)


def test_the_argmax_is_a_sample_from_the_softmax() -> None:
    tokens = gumbel_perturbed(rows(), generator=seeded()).argmax(-1)
    counts = torch.bincount(tokens, minlength=3).tolist()
    assert chisquare(counts, [NUM_DRAWS / 8, NUM_DRAWS / 4, 5 * NUM_DRAWS / 8]).pvalue > 0.01


class TestConditional:
    def test_its_argmax_is_the_given_token_in_every_row(self) -> None:
        logits = 20 * torch.randn(2_000, 50, generator=seeded(1))
        tokens = torch.randint(0, 50, (2_000,), generator=seeded(2))  # most of them very unlikely
        perturbed = conditional_gumbel_perturbed(logits, tokens, generator=seeded(3))
        assert torch.equal(perturbed.argmax(-1), tokens)
        assert bool((perturbed.topk(2, dim=-1).values.diff(dim=-1) < 0).all())
        assert bool(perturbed.isfinite().all())

    def test_averaged_over_sampled_tokens_it_is_unconditional_noise(self) -> None:
        tokens = torch.multinomial(ODDS / 8, NUM_DRAWS, replacement=True, generator=seeded(1))
        perturbed = conditional_gumbel_perturbed(rows(), tokens, generator=seeded(2))
        for column in range(3):  # z_i - phi_i is a standard Gumbel
            noise = (perturbed[:, column] - (ODDS[column] / 8).log()).double().numpy()
            assert kstest(noise, "gumbel_r").pvalue > 0.01
        assert kstest(perturbed.amax(-1).double().numpy(), "gumbel_r").pvalue > 0.01

    def test_given_a_token_it_matches_unconditional_noise_with_that_argmax(self) -> None:
        free = gumbel_perturbed(rows().log_softmax(-1), generator=seeded(4))
        kept = free[free.argmax(-1) == 1]
        given = conditional_gumbel_perturbed(rows(), torch.ones(NUM_DRAWS, dtype=torch.long), generator=seeded(5))
        for column in range(3):
            assert kstest(kept[:, column].numpy(), given[:, column].numpy()).pvalue > 0.01

    def test_the_noise_has_no_gradient(self) -> None:
        logits = ODDS.log()[None].requires_grad_()
        perturbed = conditional_gumbel_perturbed(logits, torch.tensor([2]), generator=seeded())
        gradient = torch.autograd.grad(perturbed[0, 0], logits)[0]
        torch.testing.assert_close(gradient, torch.tensor([[1 - 1 / 8, -2 / 8, -5 / 8]]))

    def test_a_masked_token_stays_masked(self) -> None:
        logits = torch.tensor([[0.0, -math.inf, 1.0]])
        perturbed = conditional_gumbel_perturbed(logits, torch.tensor([0]), generator=seeded())
        assert perturbed[0, 1] == -math.inf and perturbed.argmax() == 0


class TestStraightThrough:
    def test_forward_is_one_hot_and_backward_is_the_softmax(self) -> None:
        perturbed = torch.tensor([[0.5, 1.5, -1.0]], requires_grad=True)
        one_hot = straight_through_one_hot(perturbed, temperature=0.5)
        assert one_hot.tolist() == [[0.0, 1.0, 0.0]]
        weights = torch.tensor([1.0, 2.0, 4.0])
        gradient = torch.autograd.grad((one_hot * weights).sum(), perturbed)[0]
        # d/dz_i of sum_j w_j softmax(z / t)_j = p_i (w_i - sum_j w_j p_j) / t
        p = (perturbed.detach() / 0.5).softmax(-1)
        torch.testing.assert_close(gradient, p * (weights - (p * weights).sum()) / 0.5)

    def test_the_embedding_of_a_one_hot_is_exactly_the_lookup(self) -> None:
        embedding = torch.randn(1000, 64, generator=seeded())
        tokens = torch.randint(0, 1000, (7, 9), generator=seeded(1))
        perturbed = conditional_gumbel_perturbed(torch.randn(7, 9, 1000, generator=seeded(2)), tokens)
        one_hots = straight_through_one_hot(perturbed, temperature=1.0)
        assert torch.equal(soft_embedding(one_hots, embedding), embedding[tokens])

    def test_a_temperature_of_zero_raises(self) -> None:
        with pytest.raises(ValueError, match=r"temperature 0.0 must be positive"):
            straight_through_one_hot(torch.zeros(1, 2), temperature=0.0)


class TestStraightThroughEmbeddings:
    def test_values_and_gradients_match_explicit_one_hots(self) -> None:
        perturbed = torch.randn(3, 5, 20, generator=seeded(1))
        perturbed[..., 7] = -math.inf  # a masked token
        matrices = [torch.randn(20, width, generator=seeded(width)) for width in (4, 6)]
        weights = [torch.randn(3, 5, width, generator=seeded(9)) for width in (4, 6)]

        def gradients(fused: bool) -> list[torch.Tensor]:
            inputs = [item.clone().requires_grad_() for item in (perturbed, *matrices)]
            if fused:
                tokens, rows = straight_through_embeddings(inputs[0], inputs[1:], temperature=0.3)
                assert torch.equal(tokens, perturbed.argmax(-1))
            else:
                one_hot = straight_through_one_hot(inputs[0], temperature=0.3)
                rows = [soft_embedding(one_hot, matrix) for matrix in inputs[1:]]
            for row, matrix in zip(rows, matrices, strict=True):
                assert torch.equal(row.detach(), matrix[perturbed.argmax(-1)])
            total = torch.stack([(row * weight).sum() for row, weight in zip(rows, weights, strict=True)]).sum()
            return list(torch.autograd.grad(total, inputs))

        for fused, plain in zip(gradients(True), gradients(False), strict=True):
            torch.testing.assert_close(fused, plain)

    def test_an_unused_output_adds_no_gradient(self) -> None:
        perturbed = torch.randn(2, 5, generator=seeded()).requires_grad_()
        matrices = [torch.randn(5, 3, requires_grad=True) for _ in range(2)]
        _, (first, _) = straight_through_embeddings(perturbed, matrices, temperature=1.0)
        first.sum().backward()
        assert matrices[1].grad is None
        assert perturbed.grad is not None and matrices[0].grad is not None

    def test_a_temperature_of_zero_raises(self) -> None:
        with pytest.raises(ValueError, match=r"temperature 0.0 must be positive"):
            straight_through_embeddings(torch.zeros(1, 2), [], temperature=0.0)


def test_noise_of_a_row_does_not_depend_on_other_rows() -> None:
    logits = torch.randn(3, 4, 10, generator=seeded())
    together = gumbel_perturbed(logits, generator=[seeded(5), seeded(6), seeded(7)])
    assert torch.equal(gumbel_perturbed(logits[1:2], generator=[seeded(6)]), together[1:2])
    with pytest.raises(ValueError, match="shorter"):
        gumbel_perturbed(logits, generator=[seeded(5)])


def test_annealing_is_geometric() -> None:
    temperatures = [annealed_temperature(step, num_steps=5, start=4.0, end=0.25) for step in range(6)]
    assert temperatures == pytest.approx([4.0, 2.0, 1.0, 0.5, 0.25, 0.25])
    with pytest.raises(ValueError, match=r"must be positive, got start=1.0 and end=0"):
        annealed_temperature(0, num_steps=5, start=1.0, end=0)
