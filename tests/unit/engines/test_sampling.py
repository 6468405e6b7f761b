"""The sampling distribution and samples from it, against known numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlgaf_ray.engines.sampling import draw, row_uniforms, sampling_logprobs
from rlgaf_ray.types import SamplingSettings

LOGITS = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))


def settings(**changes) -> SamplingSettings:
    return SamplingSettings(max_new_tokens=1, **changes)


@pytest.mark.parametrize(
    ("changes", "masked", "expected"),
    [
        ({}, [], [0.4, 0.3, 0.2, 0.1]),
        ({}, [0], [0, 1 / 2, 1 / 3, 1 / 6]),
        ({}, [0, 3], [0, 3 / 5, 2 / 5, 0]),
        ({"temperature": 0.5}, [], [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 2}, [], [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 2}, [0], [0, 3 / 5, 2 / 5, 0]),
        ({"top_p": 0.6}, [], [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.05}, [], [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.75}, [], [4 / 7, 3 / 7, 0, 0]),
        ({"min_p": 0.6}, [], [4 / 7, 3 / 7, 0, 0]),  # at least 0.24
        ({"min_p": 0.3}, [0], [0, 1 / 2, 1 / 3, 1 / 6]),  # 0.1 is a third of 0.3
        ({"min_p": 0.5, "temperature": 0.5}, [], [16 / 25, 9 / 25, 0, 0]),  # 4 / 30 is a quarter of 16 / 30
        ({"min_p": 0.3, "top_p": 0.6}, [], [4 / 7, 3 / 7, 0, 0]),
    ],
)
def test_the_sampling_distribution(changes: dict, masked: list[int], expected: list[float]) -> None:
    probabilities = sampling_logprobs(LOGITS, settings(**changes), masked_ids=masked).exp()
    torch.testing.assert_close(probabilities, torch.tensor([expected], dtype=torch.float32), atol=1e-6, rtol=0)


def test_the_logits_are_not_modified() -> None:
    logits = LOGITS.clone()
    sampling_logprobs(logits, settings(top_k=1, temperature=2.0), masked_ids=[0])
    assert torch.equal(logits, LOGITS)


def test_draw_inverts_the_cdf() -> None:
    uniforms = torch.tensor([0.0, 0.39, 0.41, 0.69, 0.71, 0.89, 0.91, 1 - 2**-53], dtype=torch.float64)
    logprobs = LOGITS.log_softmax(-1).expand(8, -1)
    assert draw(logprobs, uniforms).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_draw_never_returns_a_masked_token() -> None:
    logprobs = torch.log(torch.tensor([[0.0, 0.7, 0.0, 0.3, 0.0]])).expand(2, -1)
    assert draw(logprobs, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 3]


def test_draws_follow_the_distribution() -> None:
    uniforms = row_uniforms(range(20000), 1)[:, 0]
    tokens = draw(LOGITS.log_softmax(-1).expand(20000, -1), uniforms)
    np.testing.assert_allclose(np.bincount(tokens) / 20000, [0.4, 0.3, 0.2, 0.1], atol=0.015)


def test_the_uniforms_of_a_row_depend_on_its_seed_only() -> None:
    together = row_uniforms([5, 2**62, 7], 6)
    assert torch.equal(together[1], row_uniforms([2**62], 6)[0])
    assert torch.equal(together[:, :3], row_uniforms([5, 2**62, 7], 3))
    assert not torch.equal(together[0], together[2])
