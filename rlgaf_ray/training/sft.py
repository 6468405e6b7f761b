"""How long to fine-tune on the demonstrations: the number of passes of the lowest cross-validated NLL.

With few demonstrations one small held-out part decides by chance (early stopping on 30 rows ended one model at half the
success of another that learned from the same 300). So every demonstration is held out once, and the folds' curves are
averaged; with many, one tenth is enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from rlgaf_ray.config.warmup import SftWarmup
from rlgaf_ray.training.precision import Precision, autocast
from rlgaf_ray.training.warmup import NextTokenLoss, Progress, Training, Worker
from rlgaf_ray.types import TextBlocks

EVERY = 25  # steps between measurements
PATIENCE = 4  # measurements without a new low that end a fold
FOLDS = 4
FEWEST_ROWS = 2  # one to hold out and one to learn from
ENOUGH_HELD_OUT = 200  # rows; with as many in a tenth, one fold is enough


def choose_steps(
    make_model: Callable[[], nn.Module],
    blocks: TextBlocks,
    settings: SftWarmup,
    *,
    precision: Precision,
    seed: int,
    worker: Worker,
) -> int:
    """Steps on all ``blocks`` that pass over them as often as was best in cross-validation.

    ``make_model`` gives the model that is fine-tuned, anew for each fold. Needs ``FEWEST_ROWS`` or more.
    """
    order = np.random.default_rng(seed).permutation(len(blocks))
    enough = len(blocks) // 10 >= ENOUGH_HELD_OUT
    folds = [order[: len(blocks) // 10]] if enough else np.array_split(order, min(FOLDS, len(blocks)))
    curves: list[list[float]] = []
    for held_out in folds:
        model = make_model()
        training = Training(
            model,
            NextTokenLoss(model, blocks[np.setdiff1d(order, held_out)], worker.device),
            settings,
            settings.max_steps,
            precision,
            seed,
            Worker(device=worker.device),  # each of several workers finds the same number by itself
        )
        curve: list[float] = []
        started = time.perf_counter()
        for nll in _measured(training, NextTokenLoss(model, blocks[held_out], worker.device)):
            curve.append(nll)
            seconds = time.perf_counter() - started
            tokens = (len(curve) - 1) * EVERY * settings.batch_size * blocks.token_ids.shape[1]
            worker.report(Progress((len(curve) - 1) * EVERY, settings.max_steps, nll, tokens / seconds))
            if len(curve) - 1 - int(np.argmin(curve)) == PATIENCE:
                break
        curves.append(curve)
    shortest = min(map(len, curves))
    best = int(np.argmin(np.mean([curve[:shortest] for curve in curves], axis=0))) * EVERY
    trained_on = len(blocks) - len(folds[0])
    return round(best * len(blocks) / trained_on)


def _measured(training: Training, held_out: NextTokenLoss) -> Iterator[float]:
    """Held-out NLL (nats a token) before the first step and after every ``EVERY`` steps."""
    yield _nll(training, held_out)
    for done, _ in training.steps():
        if done % EVERY == 0:
            yield _nll(training, held_out)


@torch.no_grad()
def _nll(training: Training, held_out: NextTokenLoss) -> float:
    total, count = 0.0, 0
    rows = np.arange(len(held_out))
    for start in range(0, len(rows), training.settings.batch_size):
        part = rows[start : start + training.settings.batch_size]
        terms = held_out.num_terms(part)
        with autocast(training.dtype, training.worker.device):
            total += float(held_out(part)) * terms
        count += terms
    return total / count
