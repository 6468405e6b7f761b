"""The supervised warm-ups as plain functions: they run in any process, alone or as one rank of several.

Every step's batch depends on (seed, step) alone, so that a resumed warm-up equals an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from rlgaf_ray.config.schema import DiscriminatorWarmup, GeneratorWarmup, SftWarmup
from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.data.prompts import PromptStream
from rlgaf_ray.objectives.logprobs import token_logprobs
from rlgaf_ray.objectives.policy import masked_average
from rlgaf_ray.training.optimizer import (
    build_optimizer,
    load_optimizer,
    optimizer_step,
    save_optimizer,
    schedule_factor,
)
from rlgaf_ray.training.precision import Precision, autocast, resolve_precision
from rlgaf_ray.types import Demonstration, TextBlocks

REPORT_EVERY = 10  # steps
MODEL, OPTIMIZER, STEP = "model.safetensors", "optimizer.safetensors", "step.txt"


@dataclass(frozen=True, slots=True)
class Progress:
    step: int
    num_steps: int
    loss: float  # mean over the steps since the last report, nats per token (generator) or per window
    tokens_per_second: float  # of this process


@dataclass(frozen=True, slots=True)
class Worker:
    """Where this process stands among the warm-up's workers, and how it reports."""

    rank: int = 0
    num_workers: int = 1
    device: torch.device = torch.device("cpu")
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module  # DistributedDataParallel, with several workers
    report: Callable[[Progress], None] = lambda progress: None
    checkpoint: Callable[[Callable[[Path], None]], None] = lambda write: None
    resume_from: Path | None = None


def warm_up_generator(
    model: nn.Module,
    blocks: TextBlocks,
    settings: GeneratorWarmup | SftWarmup,
    *,
    precision: Precision,
    seed: int,
    checkpoint_every: int,
    worker: Worker,
) -> None:
    """Next-token loss, averaged over the tokens that are learned. Trains ``model`` in place."""
    stream = PromptStream(len(blocks), seed)
    wrapped = worker.wrap(model)

    def loss_of_batch(rows: np.ndarray) -> Tensor:
        batch = blocks[rows]
        length = int(np.flatnonzero(batch.learned.any(axis=0))[-1]) + 1  # beyond it stands padding alone
        tokens = torch.from_numpy(batch.token_ids[:, :length]).long().to(worker.device)
        learned = torch.from_numpy(batch.learned[:, 1:length]).to(worker.device)
        predicting = torch.arange(length - 1, device=worker.device)
        logits = wrapped(input_ids=tokens, logits_to_keep=predicting, use_cache=False).logits
        return -masked_average(token_logprobs(logits, tokens[:, 1:]), learned, average="token")

    def num_terms(rows: np.ndarray) -> int:
        return int(blocks.learned[rows, 1:].sum())

    length = blocks.token_ids.shape[1]
    _train(
        wrapped, loss_of_batch, num_terms, stream, settings, precision, checkpoint_every, worker, tokens_per_row=length
    )


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
    """Binary cross-entropy of the logit against the label (1 = wanted). Trains ``model`` (a ScalarModel) in place."""
    stream = PromptStream(len(windows), seed)
    wrapped = worker.wrap(model)

    def loss_of_batch(rows: np.ndarray) -> Tensor:
        sequences = collate_sequences([windows[row] for row in rows], pad_token_id).to(worker.device)
        targets = torch.from_numpy(labels[rows]).float().to(worker.device)
        return nn.functional.binary_cross_entropy_with_logits(wrapped(sequences), targets)

    length = len(windows[0].prompt_ids) + len(windows[0].response_ids)
    _train(wrapped, loss_of_batch, len, stream, settings, precision, checkpoint_every, worker, tokens_per_row=length)


def _train(
    model: nn.Module,
    loss_of_batch: Callable[[np.ndarray], Tensor],
    num_terms: Callable[[np.ndarray], int],
    stream: PromptStream,
    settings: GeneratorWarmup | SftWarmup | DiscriminatorWarmup,
    precision: Precision,
    checkpoint_every: int,
    worker: Worker,
    *,
    tokens_per_row: int,
) -> None:
    """``loss_of_batch``: a mean over ``num_terms`` of the rows."""
    assert settings.steps is not None, "the config decides the steps"
    dtype = resolve_precision(precision, worker.device)
    optimizer = build_optimizer(
        model.parameters(), learning_rate=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    trained = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    start = 0
    if worker.resume_from is not None:
        start = int((worker.resume_from / STEP).read_text())
        load_model(trained, worker.resume_from / MODEL)
        load_optimizer(optimizer, worker.resume_from / OPTIMIZER)
        stream.next(start * settings.batch_size)
    losses: list[float] = []
    clock = time.perf_counter()
    for step in range(start, settings.steps):
        batch = stream.next(settings.batch_size)
        rows = batch[worker.rank :: worker.num_workers]
        with autocast(dtype, worker.device):
            loss = loss_of_batch(rows)
        # DistributedDataParallel averages over the workers, whose shares of the batch's terms differ.
        (loss * (num_terms(rows) * worker.num_workers / num_terms(batch))).backward()
        factor = schedule_factor(
            step,
            num_steps=settings.steps,
            num_warmup_steps=int(settings.steps * settings.warmup_fraction),
            schedule="cosine",
        )
        optimizer_step(
            optimizer,
            model.parameters(),
            learning_rate=settings.learning_rate * factor,
            max_grad_norm=settings.max_grad_norm,
        )
        losses.append(float(loss.detach()))
        done = step + 1
        if done % REPORT_EVERY == 0 or done == settings.steps:
            seconds = time.perf_counter() - clock
            tokens = len(losses) * len(rows) * tokens_per_row
            worker.report(Progress(done, settings.steps, sum(losses) / len(losses), tokens / seconds))
            losses, clock = [], time.perf_counter()
        if done % checkpoint_every == 0 and done < settings.steps:

            def write(folder: Path, done: int = done) -> None:
                save_model(trained, str(folder / MODEL))
                save_optimizer(optimizer, folder / OPTIMIZER)
                (folder / STEP).write_text(str(done))

            worker.checkpoint(write)
