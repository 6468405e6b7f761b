"""A small LSTM with a large vocabulary, as fast as a CPU allows: sampling, prefix completion, log-probs with gradient.

The distribution over the vocabulary costs nearly everything. It is computed in slices of rows that stay in the cache
and share one buffer, and with powers of two, which cost half of what powers of e do: the weights of the last layer are
scaled by log2(e) once. Nothing here makes a Python object per sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlgaf_ray.models.lstm import LstmForCausalLM

START = 0  # what SeqGAN's models read before the first token; it may be sampled as well
ROWS = 64  # of logits at once: 64 x 5,000 floats are 1.3 MB
BITS = math.log2(math.e)
State = tuple[Tensor, Tensor]  # hidden and cell, [B, H] each


class LstmSampler:
    """A snapshot of a model's weights, ready to sample."""

    @torch.no_grad()
    def __init__(self, model: LstmForCausalLM, *, temperature: float = 1.0) -> None:
        lstm: Any = model.lstm  # its weights are no attributes of the type
        self.inputs = model.embedding.weight @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + lstm.bias_hh_l0  # [V, 4H]
        self.recurrent = lstm.weight_hh_l0.T.clone()  # [H, 4H]
        self.output = (model.lm_head.weight * (BITS / temperature)).T  # [H, V]
        self.bias = model.lm_head.bias * (BITS / temperature)
        vocabulary = len(self.bias)
        # A draw takes a block of tokens first, then a token of that block.
        self.block = max(size for size in range(1, math.isqrt(vocabulary) * 2) if vocabulary % size == 0)
        self.buffer = torch.empty(ROWS, vocabulary)

    def start(self, size: int) -> State:
        """The state after the start token."""
        zeros = torch.zeros(size, len(self.recurrent))
        return self.advance(torch.full((size,), START), (zeros, zeros))

    def advance(self, tokens: Tensor, state: State) -> State:
        """The state after one more token a row."""
        hidden, cell = state
        enter, forget, new, out = torch.addmm(self.inputs[tokens], hidden, self.recurrent).chunk(4, -1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return out.sigmoid() * cell.tanh(), cell

    def draw(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """[B, H] -> the next token of every row, by inverting the distribution function: float32, so to about 1e-6."""
        tokens = torch.empty(len(hidden), dtype=torch.long)
        uniforms = torch.rand(len(hidden), 1, generator=generator)
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, start + ROWS)
            weights = torch.addmm(self.bias, hidden[rows], self.output, out=self.buffer[: len(hidden[rows])])
            weights.sub_(weights.amax(-1, keepdim=True)).exp2_()
            blocks = weights.view(len(weights), -1, self.block)
            sums = blocks.sum(-1).cumsum(-1)
            target = uniforms[rows] * sums[:, -1:]
            block = torch.searchsorted(sums, target, right=True).clamp_(max=sums.shape[1] - 1)
            inside = blocks.gather(1, block[..., None].expand(-1, 1, self.block))[:, 0].cumsum(-1)
            # What the draw has left inside its block: its share of the block times what the block sums to.
            before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
            share = (target - before) / (sums.gather(1, block) - before)
            token = torch.searchsorted(inside, share * inside[:, -1:], right=True).clamp_(max=self.block - 1)
            tokens[rows] = (block * self.block + token)[:, 0]
        return tokens

    @torch.no_grad()
    def sample(self, size: int, length: int, generator: torch.Generator) -> Tensor:
        """Whole sequences, [B, T]."""
        state = self.start(size)
        tokens = torch.empty(size, length, dtype=torch.long)
        for step in range(length):
            tokens[:, step] = self.draw(state[0], generator)
            state = self.advance(tokens[:, step], state)
        return tokens

    @torch.no_grad()
    def complete(
        self, tokens: Tensor, positions: list[int], num_completions: int, generator: torch.Generator
    ) -> Tensor:
        """[B, T] -> [P, B, N, T]: the prefixes of the given lengths (rising), each with what the model goes on with."""
        size, length = tokens.shape
        whole = tokens[None, :, None].repeat(len(positions), 1, num_completions, 1)
        state = self.start(size)
        running: State | None = None  # of the prefixes that have been joined, [joined * B * N, H]
        joined = 0
        for step in range(positions[0] if positions else length):
            state = self.advance(tokens[:, step], state)
        for step in range(positions[0] if positions else length, length):
            if joined < len(positions) and positions[joined] == step:
                hidden, cell = (part.repeat_interleave(num_completions, 0) for part in state)
                if running is not None:
                    hidden, cell = torch.cat([running[0], hidden]), torch.cat([running[1], cell])
                running = hidden, cell
                joined += 1
            assert running is not None
            drawn = self.draw(running[0], generator)
            whole[:joined, :, :, step] = drawn.view(joined, size, num_completions)
            running = self.advance(drawn, running)
            state = self.advance(tokens[:, step], state)
        return whole


class _VocabularyLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias) of the targets, [N]; the backward pass computes the logits again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        logprobs, normalisers = torch.empty(len(hidden)), torch.empty(len(hidden))
        for rows, logits in _slices(hidden, weight, bias):
            chosen = logits.gather(1, targets[rows, None])[:, 0]
            most = logits.amax(-1, keepdim=True)
            normalisers[rows] = most[:, 0] + logits.sub_(most).exp2_().sum(-1).log2()
            logprobs[rows] = (chosen - normalisers[rows]) / BITS
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        return logprobs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        gradients = torch.zeros_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
        for rows, logits in _slices(hidden, weight, bias):
            shares = logits.sub_(normalisers[rows, None]).exp2_().mul_(-gradient[rows, None])
            shares.scatter_add_(1, targets[rows, None], gradient[rows, None])
            _add_gradients(gradients, shares, rows, hidden, weight)
        return *gradients, None


class _MeanNll(torch.autograd.Function):
    """Minus the mean of the above, whose gradient is known on the way forward: no logits are computed twice."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        gradients = tuple(torch.zeros_like(part) for part in (hidden, weight, bias))
        total, each = torch.zeros(()), torch.full((ROWS, 1), -1.0 / len(hidden))
        for rows, logits in _slices(hidden, weight, bias):
            chosen = logits.gather(1, targets[rows, None])
            most = logits.amax(-1, keepdim=True)
            sums = logits.sub_(most).exp2_().sum(-1, keepdim=True)
            total += (most + sums.log2() - chosen).sum()
            shares = logits.mul_(1.0 / (len(hidden) * sums)).scatter_add_(1, targets[rows, None], each[: len(logits)])
            _add_gradients(gradients, shares, rows, hidden, weight)
        ctx.save_for_backward(*gradients)
        return total / (BITS * len(hidden))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        to_hidden, to_weight, to_bias = (part * gradient for part in ctx.saved_tensors)
        return to_hidden, to_weight, to_bias, None


def _slices(hidden: Tensor, weight: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their logits, in bits; all slices share one buffer."""
    output, offset = (weight * BITS).T, bias * BITS
    buffer = torch.empty(ROWS, len(bias))
    for start in range(0, len(hidden), ROWS):
        part = hidden[start : start + ROWS]
        yield slice(start, start + ROWS), torch.addmm(offset, part, output, out=buffer[: len(part)])


def _add_gradients(gradients: tuple[Tensor, ...], shares: Tensor, rows: slice, hidden: Tensor, weight: Tensor) -> None:
    to_hidden, to_weight, to_bias = gradients
    to_hidden[rows] = shares @ weight
    to_weight.addmm_(shares.T, hidden[rows])
    to_bias += shares.sum(0)


def sequence_logprobs(model: LstmForCausalLM, tokens: Tensor, *, temperature: float = 1.0) -> Tensor:
    """log pi(y_t | y_<t) [B, T], with the gradient to every weight; logits are divided by the temperature.

    The same as ``policy_logprobs`` of the start token and the sequence, in a quarter of the time: the vocabulary's
    logits are computed a second time in the backward pass, and never leave the cache.
    """
    head = model.lm_head
    logprobs = _VocabularyLogprobs.apply(
        _hidden(model, tokens), head.weight / temperature, head.bias / temperature, tokens.flatten()
    )
    return logprobs.view_as(tokens)


def mean_nll(model: LstmForCausalLM, tokens: Tensor) -> Tensor:
    """Maximum likelihood's loss: minus the mean of ``sequence_logprobs``, in two thirds of its time."""
    return _MeanNll.apply(_hidden(model, tokens), model.lm_head.weight, model.lm_head.bias, tokens.flatten())


def _hidden(model: LstmForCausalLM, tokens: Tensor) -> Tensor:
    inputs = torch.nn.functional.pad(tokens[:, :-1], (1, 0), value=START)
    return model.lstm(model.embedding(inputs))[0].flatten(0, 1)
