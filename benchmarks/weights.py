"""A weight push from the learner's process to vLLM in a Ray actor, compared with a memcpy of the same bytes.

    python benchmarks/weights.py

Bars (medians of the rounds): a push of the tiny GPT-2 takes at most 0.1 s from put to ready; 500 MB (GPT-2 small's
shape in float32) take at most 0.5 s from put to the tensors that vLLM's reload starts from.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.config import Config
from rlgaf_ray.engines.vllm import VLLMEngine
from rlgaf_ray.models.generator import FROM_SCRATCH_VOCABULARY, build_tiny_gpt2
from rlgaf_ray.types import WeightUpdate
from rlgaf_ray.weights.state import num_bytes, to_arrays, to_tensors, update_checksum

WARMUP_ROUNDS, ROUNDS = 2, 7
PUSH_BAR, HANDOVER_BAR = 0.1, 0.5


class Receiver(VLLMEngine):
    """The engine of a rollout worker, with a method that measures the transfer alone."""

    def receive(self, update: WeightUpdate) -> str:
        """Receive an update up to vLLM's reload: fetch the arrays and view them as tensors of their dtypes."""
        assert len(to_tensors(update)) == len(update.arrays)
        return update_checksum(update)


@dataclass
class Times:
    """Seconds of each round for one model."""

    megabytes: float
    handover: list[float]  # put, get in the actor, tensors
    push: list[float]  # put, get, reload, prefix cache cleared: ready to sample
    reload: list[float]  # vLLM's part of the push
    memcpy: list[float]  # copy of the same bytes in this process


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(model: PreTrainedModel, folder: Path) -> Times:
    model.save_pretrained(folder)
    actor: Any = ray.remote(num_cpus=1)(Receiver)
    engine = actor.remote(folder, max_model_len=32, kv_cache_mib=64, threads=1)
    update = to_arrays(model.state_dict(), 0)
    arrays = list({id(array): array for array in update.arrays.values()}.values())
    copies = [np.ones_like(array) for array in arrays]
    times = Times(num_bytes(update) / 1e6, [], [], [], [])

    def handover() -> None:
        update = to_arrays(model.state_dict(), 0)
        assert ray.get(engine.receive.remote(ray.put(update))) == update_checksum(update)

    def push(version: int) -> None:
        metrics = ray.get(engine.update_weights.remote(ray.put(to_arrays(model.state_dict(), version))))
        times.reload.append(metrics["load_seconds"])

    def memcpy() -> None:
        for copy, array in zip(copies, arrays, strict=True):
            np.copyto(copy, array)

    for version in range(1, 1 + WARMUP_ROUNDS + ROUNDS):
        times.handover.append(seconds(handover))
        times.push.append(seconds(partial(push, version)))
        times.memcpy.append(seconds(memcpy))
    ray.get(engine.close.remote())
    ray.kill(engine)
    kept = {name: getattr(times, name)[WARMUP_ROUNDS:] for name in ("handover", "push", "reload", "memcpy")}
    return Times(times.megabytes, **kept)


def spread(values: list[float]) -> str:
    """Format seconds as milliseconds: median (minimum to maximum)."""
    return f"{1e3 * statistics.median(values):.1f} ({1e3 * min(values):.1f} to {1e3 * max(values):.1f})"


def main() -> int:
    disable_progress_bar()
    models = {
        "tiny GPT-2": build_tiny_gpt2(vocab_size=FROM_SCRATCH_VOCABULARY, end_of_text_id=0, seed=0),
        "GPT-2 small": GPT2LMHeadModel(GPT2Config()),
    }
    with ray_session(Config()), TemporaryDirectory() as folder:
        results = {name: measure(model, Path(folder) / name.replace(" ", "-")) for name, model in models.items()}
    table = Table(title=f"Weights into vLLM, float32, {ROUNDS} rounds: milliseconds, median (minimum to maximum)")
    for column in ("model", "MB", "put, get, tensors", "put to ready", "thereof vLLM's reload", "memcpy"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, times in results.items():
        columns = (times.handover, times.push, times.reload, times.memcpy)
        table.add_row(name, f"{times.megabytes:.1f}", *(spread(values) for values in columns))
    console = Console()
    console.print(table)
    missed = False
    for what, values, bar in (
        ("tiny GPT-2, put to ready", results["tiny GPT-2"].push, PUSH_BAR),
        ("GPT-2 small, put to tensors", results["GPT-2 small"].handover, HANDOVER_BAR),
    ):
        median = statistics.median(values)
        missed |= median > bar
        console.print(f"{what}: {median:.3f} s, bar {bar} s: {'missed' if median > bar else 'met'}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
