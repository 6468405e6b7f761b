"""Supervised fine-tuning on demonstrations, with the number of epochs chosen by held-out loss.

With few demonstrations, a single small held-out split is too noisy: early stopping on 30 rows once gave a model with
half the success of another one trained on the same 300 rows. So the loss curve is averaged over cross-validation
folds. With many demonstrations a single split of one tenth is enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlgaf_ray.config.warmup import SftWarmup
from rlgaf_ray.data.collate import collate_sequences, demonstration_blocks
from rlgaf_ray.models.generator import policy_logprobs
from rlgaf_ray.training.precision import Precision, autocast
from rlgaf_ray.training.randomness import seeded
from rlgaf_ray.training.warmup import Loss, NextTokenLoss, Training, WarmupProgress, Worker
from rlgaf_ray.types import Demonstration, SequenceBatch

MEASURE_EVERY = 25  # steps
PATIENCE = 4  # measurements without a new minimum before a fold stops
FOLDS = 4
FEWEST_ROWS = 2  # one to hold out and one to train on
ENOUGH_HELD_OUT = 200  # rows; a single split is enough if a tenth has that many

OtherPrompts = Sequence[Sequence[np.ndarray] | None] | None
"""For each demonstration the prompts for which its response is wrong (``Task.other_prompts``), or None."""


class SftLoss:
    """Next-token loss of the responses plus a weighted contrastive loss over prompts::

        L = mean_t -log p(y_t | x, y_<t) + w mean_i -log p(y_i | x_i) / (p(y_i | x_i) + sum_k p(y_i | x_k))

    The second mean is over the demonstrations; x_1 ... x_K are sampled with replacement from the ``other_prompts`` of
    the demonstration, or, if there are none, from the prompts other than x_i. It is InfoNCE (van den Oord et al. 2018,
    arXiv 1807.03748, eq. 4) with the sequence log-likelihood as score. The prompt's effect is a small part of a
    response's likelihood but all of this term. It costs K + 1 more forward passes, checkpointed so that the activations
    of only one are in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        demonstrations: Sequence[Demonstration],
        settings: SftWarmup,
        device: torch.device,
        other_prompts: OtherPrompts = None,
    ) -> None:
        self.model = model
        self.demonstrations = demonstrations
        self.settings = settings
        self.device = device
        self.next_token = NextTokenLoss(model, demonstration_blocks(demonstrations), device)
        self.other_prompts = other_prompts
        distinct = {item.prompt_ids.tobytes(): item.prompt_ids for item in demonstrations}
        self.prompts = list(distinct.values())
        index = {key: row for row, key in enumerate(distinct)}
        self.own = np.array([index[item.prompt_ids.tobytes()] for item in demonstrations])

    def __len__(self) -> int:
        return len(self.demonstrations)

    def __call__(self, rows: np.ndarray, batch: np.ndarray) -> Tensor:
        loss = self.next_token(rows, batch)
        if self.settings.contrastive_weight == 0:
            return loss
        own = [self.demonstrations[row].prompt_ids for row in rows]
        others = [self._others(rows) for _ in range(self.settings.contrastive_prompts)]
        choices = torch.stack([self._likelihoods(rows, prompts) for prompts in (own, *others)])
        contrastive = (choices.logsumexp(0) - choices[0]).sum() / len(batch)
        return loss + self.settings.contrastive_weight * contrastive

    def _others(self, rows: np.ndarray) -> list[np.ndarray]:
        """Draw another prompt for each row: of the task's other prompts, or of the other demonstrations' prompts."""
        drawn = torch.randint(1 << 31, (len(rows),)).tolist()
        return [self._other(row, number) for row, number in zip(rows.tolist(), drawn, strict=True)]

    def _other(self, row: int, number: int) -> np.ndarray:
        if self.other_prompts is not None and (others := self.other_prompts[row]) is not None:
            return others[number % len(others)]
        prompt = number % (len(self.prompts) - 1)
        return self.prompts[prompt + (prompt >= self.own[row])]  # skip the row's own prompt

    def _likelihoods(self, rows: np.ndarray, prompts: Sequence[np.ndarray]) -> Tensor:
        """Return the log-likelihood of each row's response given the paired prompt, in nats: [rows]."""
        items = [
            Demonstration(prompt, self.demonstrations[row].response_ids)
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        sequences = collate_sequences(items, pad_token_id=0).to(self.device)
        # Tensors as arguments: their devices are those whose random state the recomputation restores, for dropout.
        tensors = sequences.token_ids, sequences.attention_mask, sequences.response_mask
        logprobs = checkpoint(self._logprobs, *tensors, use_reentrant=False)
        assert isinstance(logprobs, Tensor)
        return logprobs.sum(1)

    def _logprobs(self, *tensors: Tensor) -> Tensor:
        return policy_logprobs(cast(PreTrainedModel, self.model), SequenceBatch(*tensors))


@dataclass(frozen=True, slots=True)
class Subset:
    """A loss restricted to some of its rows."""

    loss: Loss
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, rows: np.ndarray, batch: np.ndarray) -> Tensor:
        return self.loss(self.rows[rows], self.rows[batch])


def fine_tune(
    model: nn.Module,
    demonstrations: Sequence[Demonstration],
    settings: SftWarmup,
    *,
    precision: Precision,
    seed: int,
    checkpoint_every: int,
    worker: Worker,
    other_prompts: OtherPrompts = None,
    keep_state: bool = False,
) -> None:
    """Train ``model`` in place for ``settings.steps`` steps, which must be a number.

    ``keep_state``: also write a checkpoint after the last step, from which a longer training can continue.
    """
    assert isinstance(settings.steps, int), "resolve warmup.sft.steps first"
    wrapped = worker.wrap(model)
    loss = SftLoss(wrapped, demonstrations, settings, worker.device, other_prompts)
    training = Training(wrapped, loss, settings, settings.steps, precision, seed, worker)
    training.run(checkpoint_every, tokens_per_row=_tokens_per_row(loss), keep_state=keep_state)


def choose_steps(
    make_model: Callable[[], PreTrainedModel],
    demonstrations: Sequence[Demonstration],
    settings: SftWarmup,
    *,
    precision: Precision,
    seed: int,
    worker: Worker,
    other_prompts: OtherPrompts = None,
) -> int:
    """Return the number of steps on all ``demonstrations`` that matches the best number of epochs in cross-validation.

    ``make_model`` returns a fresh copy of the initial model for each fold. Needs at least ``FEWEST_ROWS`` rows.
    """
    order = np.random.default_rng(seed).permutation(len(demonstrations))
    enough = len(demonstrations) // 10 >= ENOUGH_HELD_OUT
    folds = [order[: len(order) // 10]] if enough else np.array_split(order, min(FOLDS, len(order)))
    single = Worker(device=worker.device)  # every worker computes the same number independently
    curves: list[list[float]] = []
    for number, fold in enumerate(folds, 1):
        part = f"fold {number} of {len(folds)}"
        model = make_model()
        # Held-out responses are contrasted with all other prompts too.
        loss = SftLoss(model, demonstrations, settings, worker.device, other_prompts)
        training_rows = Subset(loss, np.setdiff1d(order, fold))
        training = Training(model, training_rows, settings, settings.max_steps, precision, seed, single)
        curve: list[float] = []
        started = time.perf_counter()
        for value in _measured(training, Subset(loss, fold)):
            curve.append(value)
            seconds = time.perf_counter() - started
            steps = (len(curve) - 1) * MEASURE_EVERY
            tokens = steps * settings.batch_size * _tokens_per_row(loss)
            worker.report(WarmupProgress(steps, settings.max_steps, value, tokens / seconds, part))
            if len(curve) - 1 - int(np.argmin(curve)) == PATIENCE:
                break
        curves.append(curve)
    shortest = min(map(len, curves))
    best = int(np.argmin(np.mean([curve[:shortest] for curve in curves], axis=0))) * MEASURE_EVERY
    trained_on = len(order) - len(folds[0])
    return round(best * len(order) / trained_on)


def _measured(training: Training, held_out: Loss) -> Iterator[float]:
    """Yield the held-out loss before the first step and after every ``MEASURE_EVERY`` steps."""
    yield _held_out(training, held_out)
    for done, _ in training.steps():
        if done % MEASURE_EVERY == 0:
            yield _held_out(training, held_out)


@torch.no_grad()
def _held_out(training: Training, held_out: Loss) -> float:
    """Return the mean loss over all rows, with the same contrastive prompts every time."""
    rows, device = np.arange(len(held_out)), training.worker.device
    chunks = np.split(rows, range(training.settings.batch_size, len(rows), training.settings.batch_size))
    with autocast(training.dtype, device), seeded(training.seed, 0, device):
        return sum(float(held_out(chunk, rows)) for chunk in chunks)


def _tokens_per_row(loss: SftLoss) -> int:
    return loss.next_token.blocks.token_ids.shape[1]
