import math

import pytest
import torch

from rlgaf_ray.objectives.logprobs import token_logprobs


def test_hand_worked_distribution():
    # Odds 1 : 2 : 5, so the probabilities are 1/8, 2/8 and 5/8; adding 7 to every logit changes nothing.
    logits = torch.tensor([[math.log(1.0), math.log(2.0), math.log(5.0)]]).repeat(3, 1) + 7.0
    logprobs = token_logprobs(logits, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(logprobs, torch.tensor([-2.0794415, -1.3862944, -0.4700036]))


def test_leading_shape_is_kept_and_ids_pick_their_own_row():
    logits = torch.zeros(2, 3, 4)
    logits[1, 2, 3] = math.log(9.0)  # odds 1 : 1 : 1 : 9
    logprobs = token_logprobs(logits, torch.tensor([[0, 1, 2], [3, 0, 3]]))
    assert logprobs.shape == (2, 3)
    torch.testing.assert_close(logprobs[0], torch.full((3,), -1.3862944))
    torch.testing.assert_close(logprobs[1], torch.tensor([-1.3862944, -1.3862944, -0.2876821]))  # log 9/12


def test_bfloat16_logits_are_summed_in_float32():
    # 1,024 equal logits: the probability is exactly 2^-10. A bfloat16 sum would stall at 256.
    logprobs = token_logprobs(torch.ones(1, 1024, dtype=torch.bfloat16), torch.tensor([5]))
    assert logprobs.dtype == torch.float32
    assert logprobs.item() == pytest.approx(-10 * math.log(2.0), abs=1e-5)


def test_large_logits_do_not_overflow_and_masked_tokens_take_no_part():
    logits = torch.tensor([[1e4, 1e4, -math.inf, 0.0]])
    assert token_logprobs(logits, torch.tensor([0])).item() == pytest.approx(-math.log(2.0))
    assert token_logprobs(logits, torch.tensor([2])).item() == -math.inf


def test_gradient_is_one_hot_minus_probability():
    logits = torch.tensor([[math.log(1.0), math.log(2.0), math.log(5.0)]], requires_grad=True)
    token_logprobs(logits, torch.tensor([1])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.125, 0.75, -0.625]]))


def test_id_outside_the_vocabulary_is_an_error_and_never_padding():
    for token_id in (-100, 4):
        with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
            token_logprobs(torch.zeros(1, 4), torch.tensor([token_id]))
