"""Milliseconds of a discriminator update for three ways to split its sequences into forward passes.

    python benchmarks/discriminator_update.py [--rounds N] [--threads N] [OVERRIDE ...]

64 demonstrations against 64 rollouts, with and without 64 contrast rows, on the built-in model. Equal lengths: 3 prompt
and 28 response tokens; mixed: prompts of 8 to 23 tokens, responses of 1 to 28. "Batch order" makes micro-batches in
the order of the batch, "by length" is the package's way, "one pass" runs all sequences in one forward pass. The sides
take turns; medians of CPU time, which other processes disturb less than wall time. OVERRIDE must not choose a pairwise
loss. No bar.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from rlgaf_ray.checkup import processor_name
from rlgaf_ray.config import load_config
from rlgaf_ray.data.collate import num_tokens
from rlgaf_ray.data.lengths import Response
from rlgaf_ray.models.built_in import FOLDER
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.training.precision import processor_type
from rlgaf_ray.types import Demonstration, Rollout

COUNT, LONGEST, VOCABULARY = 64, 28, 4096


class BatchOrder(NeuralDiscriminator):
    def _passes(self, items: Sequence[Response], counts: Sequence[int]) -> list[list[list[int]]]:
        plan = self.batching.plan([num_tokens(item) for item in items])
        return [plan[start : start + 3] for start in range(0, len(plan), 3)]


class OnePass(NeuralDiscriminator):
    def _passes(self, items: Sequence[Response], counts: Sequence[int]) -> list[list[list[int]]]:
        return [[list(range(len(items)))]]


SIDES = {"batch order": BatchOrder, "by length": NeuralDiscriminator, "one pass": OnePass}


def drawn(numbers: np.random.Generator, *, mixed: bool) -> list[Demonstration]:
    items = []
    for _ in range(COUNT):
        prompt = numbers.integers(8, 24) if mixed else 3
        response = min(numbers.geometric(1 / 6), LONGEST) if mixed else LONGEST
        ids = numbers.integers(1, VOCABULARY, prompt + response).astype(np.int32)
        items.append(Demonstration(ids[:prompt], ids[prompt:]))
    return items


def as_rollouts(items: Sequence[Demonstration]) -> list[Rollout]:
    return [
        Rollout(row, item.prompt_ids, item.response_ids, np.zeros(len(item.response_ids), np.float32), "stop", 0)
        for row, item in enumerate(items)
    ]


def measure(sides: dict[str, NeuralDiscriminator], num_contrast: int, rounds: int, *, mixed: bool) -> dict[str, float]:
    """Return each side's median CPU milliseconds of an update, without the first round."""
    numbers = np.random.default_rng(0)
    real, fake, contrast = (drawn(numbers, mixed=mixed) for _ in range(3))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(1 + rounds):
        for name, discriminator in sides.items():
            started = time.process_time()
            discriminator.update(real, as_rollouts(fake), contrast[:num_contrast])
            times[name].append(1000 * (time.process_time() - started))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    table = Table(title=f"CPU ms of an update, {processor_name()}, {processor_type()}, threads: {arguments.threads}")
    for head in ("dtype", "lengths", "contrast", *SIDES, "by length / batch order", "one pass / batch order"):
        table.add_column(head, justify="left" if head in ("dtype", "lengths") else "right")
    for precision in ("bfloat16", "float32"):
        config = load_config(None, [f"learner.precision={precision}", *arguments.overrides])
        sides = {name: side(FOLDER, config, pad_token_id=0) for name, side in SIDES.items()}
        for mixed in (False, True):
            for num_contrast in (0, COUNT):
                found = measure(sides, num_contrast, arguments.rounds, mixed=mixed)
                old, new, one = found.values()
                words = [precision, "mixed" if mixed else "equal", str(num_contrast)]
                figures = [f"{value:.0f}" for value in (old, new, one)]
                table.add_row(*words, *figures, f"{new / old:.2f}", f"{one / old:.2f}")
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
