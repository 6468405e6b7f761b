"""Supervised warm-ups as plain functions, for a single process or one rank of several.

Each step's batch depends on (seed, step) only, so a resumed warm-up matches an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from rlgaf_ray.config.warmup import DiscriminatorWarmup, GeneratorWarmup, SftWarmup
from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.data.prompts import PromptStream
from rlgaf_ray.objectives.logprobs import token_logprobs
from rlgaf_ray.training.optimizer import (
    build_optimizer,
    load_optimizer,
    optimizer_step,
    save_optimizer,
    schedule_factor,
)
from rlgaf_ray.training.precision import Precision, autocast, resolve_precision
from rlgaf_ray.training.randomness import seeded
from rlgaf_ray.training.regularization import dropout_of
from rlgaf_ray.types import Demonstration, TextBlocks

REPORT_EVERY = 10  # steps
SFT_WARMUP_STEPS = 10
MODEL, OPTIMIZER, STEP = "model.safetensors", "optimizer.safetensors", "step.txt"


@dataclass(frozen=True, slots=True)
class WarmupProgress:
    """Progress report of a warm-up."""

    step: int
    num_steps: int
    loss: float  # mean over the steps since the last report, in nats per token (generator) or window (discriminator)
    tokens_per_second: float  # of this process
    part: str = ""  # of the stage, such as a fold of its cross-validation

    def name(self, stage: str) -> str:
        """Return the name of the warm-up for messages."""
        return f"{stage} warm-up" + (f" ({self.part})" if self.part else "")


@dataclass(frozen=True, slots=True)
class Worker:
    """Rank, device and callbacks of one warm-up process."""

    rank: int = 0
    num_workers: int = 1
    device: torch.device = torch.device("cpu")
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module  # DistributedDataParallel if several workers
    report: Callable[[WarmupProgress], None] = lambda progress: None
    checkpoint: Callable[[Callable[[Path], None]], None] = lambda write: None
    resume_from: Path | None = None

    def agreed(self, value: int) -> int:
        """Return rank 0's value on every rank: rounding may differ between them."""
        if self.num_workers == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]


def warm_up_generator(
    model: nn.Module,
    blocks: TextBlocks,
    settings: GeneratorWarmup,
    *,
    precision: Precision,
    seed: int,
    checkpoint_every: int,
    worker: Worker,
) -> None:
    """Train ``model`` in place on the next-token loss, averaged over the learned tokens."""
    assert settings.steps is not None, "resolve warmup.generator.steps first"
    wrapped = worker.wrap(model)
    loss = NextTokenLoss(wrapped, blocks, worker.device)
    training = Training(wrapped, loss, settings, settings.steps, precision, seed, worker)
    training.run(checkpoint_every, tokens_per_row=blocks.token_ids.shape[1])


def warm_up_discriminator(
    model: nn.Module,
    windows: Sequence[Demonstration],
    labels: np.ndarray,
    settings: DiscriminatorWarmup,
    *,
    pad_token_id: int,
    precision: Precision,
    seed: int,
    checkpoint_every: int,
    worker: Worker,
) -> None:
    """Train a ``DiscriminatorNetwork`` in place on the binary cross-entropy of its logits (label 1: wanted)."""
    wrapped = worker.wrap(model)
    loss = LabelLoss(wrapped, windows, labels, pad_token_id, worker.device)
    training = Training(wrapped, loss, settings, settings.steps, precision, seed, worker)
    training.run(checkpoint_every, tokens_per_row=len(windows[0].prompt_ids) + len(windows[0].response_ids))


class Loss(Protocol):
    """A mean loss over a batch, of which each worker computes its own rows' share."""

    def __len__(self) -> int:
        """Return the number of rows in the data set."""
        ...

    def __call__(self, rows: np.ndarray, batch: np.ndarray) -> Tensor:
        """Sum the loss terms of ``rows`` and divide by the number of terms of the full ``batch``."""
        ...


@dataclass(frozen=True, slots=True)
class NextTokenLoss:
    """Next-token cross-entropy in nats per learned token."""

    model: nn.Module
    blocks: TextBlocks
    device: torch.device

    def __len__(self) -> int:
        return len(self.blocks)

    def __call__(self, rows: np.ndarray, batch: np.ndarray) -> Tensor:
        blocks = self.blocks[rows].trimmed()
        tokens = torch.from_numpy(blocks.token_ids).long().to(self.device)
        learned = torch.from_numpy(blocks.learned[:, 1:]).to(self.device)
        predicting = torch.arange(tokens.shape[1] - 1, device=self.device)
        logits = self.model(input_ids=tokens, logits_to_keep=predicting, use_cache=False).logits
        logprobs = token_logprobs(logits, tokens[:, 1:])
        return -torch.where(learned, logprobs, 0.0).sum() / int(self.blocks.learned[batch, 1:].sum())


@dataclass(frozen=True, slots=True)
class LabelLoss:
    """Binary cross-entropy in nats per window."""

    model: nn.Module
    windows: Sequence[Demonstration]
    labels: np.ndarray
    pad_token_id: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.windows)

    def __call__(self, rows: np.ndarray, batch: np.ndarray) -> Tensor:
        sequences = collate_sequences([self.windows[row] for row in rows], self.pad_token_id).to(self.device)
        targets = torch.from_numpy(self.labels[rows]).float().to(self.device)
        logits = self.model(sequences)
        return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(batch)


class Training:
    """AdamW training loop on one loss. ``steps`` only trains; ``run`` also reports, checkpoints and resumes."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        settings: GeneratorWarmup | SftWarmup | DiscriminatorWarmup,
        num_steps: int,
        precision: Precision,
        seed: int,
        worker: Worker,
    ) -> None:
        self.model = model
        self.trained = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self.loss = loss
        self.settings = settings
        self.num_steps = num_steps
        self.dtype = resolve_precision(precision, worker.device)
        self.seed = seed
        self.worker = worker
        self.stream = PromptStream(len(loss), seed)
        self.optimizer = build_optimizer(
            model.parameters(),
            learning_rate=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
        )

    def steps(self, start: int = 0) -> Iterator[tuple[int, float]]:
        """Train from step ``start``, yielding after each step the steps done and the loss from this rank's rows."""
        worker, settings = self.worker, self.settings
        dropout = settings.dropout if isinstance(settings, SftWarmup) else 0.0
        self.stream.next(start * settings.batch_size)
        for step in range(start, self.num_steps):
            batch = self.stream.next(settings.batch_size)
            rows = batch[worker.rank :: worker.num_workers]
            with dropout_of(self.trained, dropout):  # includes backward, which may recompute a forward pass
                with autocast(self.dtype, worker.device), seeded(self.seed, step, worker.device, rank=worker.rank):
                    loss = self.loss(rows, batch) * worker.num_workers  # DistributedDataParallel averages over workers
                loss.backward()
            optimizer_step(
                self.optimizer,
                self.model.parameters(),
                learning_rate=settings.learning_rate * self._learning_rate_factor(step),
                max_grad_norm=settings.max_grad_norm,
            )
            yield step + 1, float(loss.detach())

    def _learning_rate_factor(self, step: int) -> float:
        """Return the learning rate multiplier: cosine decay, but constant for SFT, where the length is chosen later."""
        if isinstance(self.settings, SftWarmup):
            return min(1.0, (step + 1) / SFT_WARMUP_STEPS)
        warmup_steps = int(self.num_steps * self.settings.warmup_fraction)
        return schedule_factor(step, num_steps=self.num_steps, num_warmup_steps=warmup_steps, schedule="cosine")

    def run(self, checkpoint_every: int, *, tokens_per_row: int, keep_state: bool = False) -> None:
        """Train all steps, resuming from ``worker.resume_from`` if set. ``keep_state``: write the last state too."""
        start = 0
        if self.worker.resume_from is not None:
            start = int((self.worker.resume_from / STEP).read_text(encoding="utf-8"))
            load_model(self.trained, self.worker.resume_from / MODEL)
            load_optimizer(self.optimizer, self.worker.resume_from / OPTIMIZER)
        rows = self.settings.batch_size / self.worker.num_workers
        losses: list[float] = []
        clock = time.perf_counter()
        for done, loss in self.steps(start):
            losses.append(loss)
            if done % REPORT_EVERY == 0 or done == self.num_steps:
                seconds = time.perf_counter() - clock
                speed = len(losses) * rows * tokens_per_row / seconds
                self.worker.report(WarmupProgress(done, self.num_steps, sum(losses) / len(losses), speed))
                losses, clock = [], time.perf_counter()
            last = done == self.num_steps
            if keep_state if last else done % checkpoint_every == 0:
                self.worker.checkpoint(partial(self._write, done))

    def _write(self, done: int, folder: Path) -> None:
        save_model(self.trained, str(folder / MODEL))
        save_optimizer(self.optimizer, folder / OPTIMIZER)
        (folder / STEP).write_text(str(done), encoding="utf-8")
