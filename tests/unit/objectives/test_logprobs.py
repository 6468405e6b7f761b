import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlgaf_ray.objectives.kl import exact_kl
from rlgaf_ray.objectives.logprobs import chunked_logprobs, chunked_logprobs_and_kl, token_logprobs


def test_hand_worked_distribution():
    # Odds 1 : 2 : 5, so the probabilities are 1/8, 2/8 and 5/8; adding 7 to every logit changes nothing.
    logits = torch.tensor([[math.log(1.0), math.log(2.0), math.log(5.0)]]).repeat(3, 1) + 7.0
    logprobs = token_logprobs(logits, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(logprobs, torch.tensor([-2.0794415, -1.3862944, -0.4700036]))


def test_leading_dimensions_are_kept_and_each_id_reads_its_own_row():
    logits = torch.zeros(2, 3, 4)
    logits[1, 2, 3] = math.log(9.0)  # odds 1 : 1 : 1 : 9
    logprobs = token_logprobs(logits, torch.tensor([[0, 1, 2], [3, 0, 3]]))
    assert logprobs.shape == (2, 3)
    torch.testing.assert_close(logprobs[0], torch.full((3,), -1.3862944))
    torch.testing.assert_close(logprobs[1], torch.tensor([-1.3862944, -1.3862944, -0.2876821]))  # log 9/12


def test_bfloat16_logits_are_summed_in_float32():
    # 1,024 equal logits: the probability is exactly 2^-10. A bfloat16 sum would saturate at 256.
    logprobs = token_logprobs(torch.ones(1, 1024, dtype=torch.bfloat16), torch.tensor([5]))
    assert logprobs.dtype == torch.float32
    assert logprobs.item() == pytest.approx(-10 * math.log(2.0), abs=1e-5)


def test_large_logits_do_not_overflow_and_masked_tokens_are_ignored():
    logits = torch.tensor([[1e4, 1e4, -math.inf, 0.0]])
    assert token_logprobs(logits, torch.tensor([0])).item() == pytest.approx(-math.log(2.0))
    assert token_logprobs(logits, torch.tensor([2])).item() == -math.inf


def test_gradient_is_one_hot_minus_probability():
    logits = torch.tensor([[math.log(1.0), math.log(2.0), math.log(5.0)]], requires_grad=True)
    token_logprobs(logits, torch.tensor([1])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.125, 0.75, -0.625]]))


def test_an_id_outside_the_vocabulary_raises():
    for token_id in (-100, 4):
        with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
            token_logprobs(torch.zeros(1, 4), torch.tensor([token_id]))


TOKENS, WIDTH, WORDS = 37, 5, 41


class LargestArray(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return result


def chunk_inputs() -> list[torch.Tensor]:
    """Hidden states and output layer of policy and reference, and per-token loss weights: float64."""
    numbers = torch.Generator().manual_seed(0)
    shapes = [(TOKENS, WIDTH), (WORDS, WIDTH), (TOKENS, WIDTH), (WORDS, WIDTH), (TOKENS,)]
    return [torch.randn(shape, generator=numbers, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("size", [1, 8, 37, 100])
def test_chunks_change_neither_values_nor_gradients(size: int) -> None:
    hidden, layer, reference_hidden, reference_layer, weights = chunk_inputs()
    targets = torch.arange(TOKENS) % WORDS

    def results(chunked: bool) -> list[torch.Tensor]:
        inputs = [hidden.clone().requires_grad_(), layer.clone().requires_grad_()]
        own_hidden, own_layer = inputs

        def head(rows: torch.Tensor) -> torch.Tensor:
            return rows @ own_layer.T

        def reference_head(rows: torch.Tensor) -> torch.Tensor:
            return rows @ reference_layer.T

        if chunked:
            logprobs, anchors, distance = chunked_logprobs_and_kl(
                own_hidden, head, reference_hidden, reference_head, targets, size=size
            )
            alone = chunked_logprobs(own_hidden, head, targets, size=size)
        else:
            logprobs = alone = token_logprobs(head(own_hidden), targets)
            anchors = token_logprobs(reference_head(reference_hidden), targets)
            distance = exact_kl(head(own_hidden).log_softmax(-1), reference_head(reference_hidden).log_softmax(-1))
        loss = (weights * logprobs + 0.4 * distance + 0.1 * alone * alone).sum()
        return [logprobs, anchors, distance, alone, *torch.autograd.grad(loss, inputs)]

    for ours, plain in zip(results(True), results(False), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_logits_of_all_tokens_are_never_materialised() -> None:
    hidden, layer, reference_hidden, reference_layer, _ = chunk_inputs()
    hidden.requires_grad_()
    layer.requires_grad_()
    with LargestArray() as largest:
        logprobs, _, distance = chunked_logprobs_and_kl(
            hidden,
            lambda rows: rows @ layer.T,
            reference_hidden,
            lambda rows: rows @ reference_layer.T,
            torch.arange(TOKENS) % WORDS,
            size=6,
        )
        (logprobs.sum() + distance.sum()).backward()
    assert largest.elements == 6 * WORDS
    with LargestArray() as largest:
        token_logprobs(hidden @ layer.T, torch.arange(TOKENS) % WORDS)
    assert largest.elements == TOKENS * WORDS
