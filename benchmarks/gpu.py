"""One learner and one engine on GPUs: rollout tokens/s, the learner's model FLOP utilization, GB/s of a weight push.

    python benchmarks/gpu.py [--model FOLDER] [key=value ...]

With one GPU the two share it (push by ipc), with more each has its own (nccl); a push through the object store is
measured as well. The default model has GPT-2 small's shape with random weights, which do not affect speed. Utilization
counts 6 N FLOP per token (Kaplan et al. 2020, arXiv 2001.08361: forward and backward pass of N parameters) over the
time of the whole update; the forward pass of the reference model (2 N) is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from rlgaf_ray.actors.answers import PendingCall
from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.actors.groups import LearnerWorker
from rlgaf_ray.actors.push import copies_weights
from rlgaf_ray.actors.rollout import RolloutWorker
from rlgaf_ray.actors.transfer import GpuTransfer
from rlgaf_ray.config import load_config
from rlgaf_ray.training.algorithms import configured_algorithm
from rlgaf_ray.types import Metrics, Prompt, Rollout, SamplingSettings, ScoredRollout
from rlgaf_ray.weights.choice import Backend, choose_transfer

PEAKS = {  # dense bfloat16 FLOP/s, from NVIDIA's data sheets
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
ROUNDS, UNTIMED, PROMPT_TOKENS, SECONDS = 5, 2, 32, 600


class BenchLearner(LearnerWorker):
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.policy.model.parameters())


def peak(device: str) -> float | None:
    return next((flops for name, flops in PEAKS.items() if name in device), None)


def median_seconds(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(UNTIMED + ROUNDS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[UNTIMED:])


def wait(calls: Sequence[PendingCall]) -> list[Any]:
    return [ray.get(ref, timeout=SECONDS) for _, _, ref in calls]


def push_over_gpus(transfer: GpuTransfer, version: int) -> list[Metrics]:
    """Push over GPUs and return each engine's metrics."""
    received, sent = transfer.push(version, "policy", lambda worker, update: worker.update_weights.remote(update))
    return wait([*((worker, "update_weights", ref) for worker, ref in received.items()), *sent])[: len(received)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: this benchmark needs a GPU", file=sys.stderr)
        return 2
    defaults = ["rollout.batch_size=256", "task.response_tokens=128", "cluster.gpus_per_actor=0.4"]
    config = load_config(None, [*defaults, *arguments.overrides])
    device, count = torch.cuda.get_device_name(0), torch.cuda.device_count()
    share = 0.4 if count == 1 else 1
    console = Console()
    with ray_session(config), TemporaryDirectory() as temporary:
        folder = arguments.model or Path(temporary)
        if arguments.model is None:
            GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
        vocabulary = AutoConfig.from_pretrained(folder).get_text_config().vocab_size
        learner: Any = ray.remote(num_gpus=share)(BenchLearner).remote(
            folder, config, pad_token_id=0, device="cuda", new_algorithm=configured_algorithm
        )
        table = Table(title=f"{count} x {device}, torch {torch.__version__}, {ROUNDS} rounds, medians")
        for column in ("what", "figure"):
            table.add_column(column)

        def found(what: str, figure: str) -> None:
            console.print(f"{what}: {figure}")  # immediately: an engine takes a minute to start
            table.add_row(what, figure)

        numbers = np.random.default_rng(0)
        prompts = [
            Prompt(i, numbers.integers(1, vocabulary, PROMPT_TOKENS).astype(np.int32))
            for i in range(config.rollout.prompts_per_iteration)
        ]
        sampling = SamplingSettings(
            max_new_tokens=config.task.response_tokens,
            samples_per_prompt=config.rollout.samples_per_prompt,
            stop_at_end_of_text=False,
        )
        seeds = range(config.rollout.batch_size)
        rollouts: list[Rollout] = []
        site = ray.get(learner.site.remote(), timeout=SECONDS)
        backends: list[Backend] = ["object_store", "ipc" if count == 1 else "nccl"]
        for backend in backends:
            worker: Any = ray.remote(num_gpus=share)(RolloutWorker).remote(
                str(folder), config, max_tokens=PROMPT_TOKENS + sampling.max_new_tokens, device="cuda", threads=4
            )
            sites = [ray.get(worker.site.remote(), timeout=SECONDS)]
            # Raises if this transfer is not possible here.
            copies = copies_weights(config)
            choose_transfer(backend, learners=[site], engines=sites, device_transfer=True, together=True, copies=copies)
            ray.get(worker.start.remote(backend), timeout=SECONDS)
            seconds, megabytes = measure_push(backend, learner, worker, config.rollout.tensor_parallel_size)
            found(f"push, {backend}", f"{megabytes / 1e3 / seconds:.2f} GB/s ({megabytes:.0f} MB, {seconds:.3f} s)")
            if not rollouts:

                def generate(worker: Any = worker) -> list[Rollout]:
                    return ray.get(worker.generate.remote(prompts, sampling, seeds), timeout=SECONDS)

                rollouts = generate()
                tokens = sum(len(rollout.response_ids) for rollout in rollouts)
                found("rollouts", f"{tokens / median_seconds(generate):,.0f} tokens/s")
            ray.kill(worker)

        scored = [ScoredRollout(rollout, 0.0, 0, float(numbers.normal())) for rollout in rollouts]
        seconds = median_seconds(lambda: ray.get(learner.update.remote(scored, iteration=0), timeout=SECONDS))
        tokens = sum(len(r.prompt_ids) + len(r.response_ids) for r in rollouts)
        work = 6 * ray.get(learner.num_parameters.remote()) * tokens / seconds
        found("learner", f"{tokens / seconds:,.0f} tokens/s, {work / 1e12:.1f} TFLOP/s")
        top = peak(device)
        known = f"{work / top:.1%} of {top / 1e12:.0f} TFLOP/s" if top else f"peak of {device} unknown"
        found("learner utilization", known)
        console.print(table)
    return 0


def measure_push(backend: Backend, learner: Any, worker: Any, parallel: int) -> tuple[float, float]:
    """Return the median seconds of a push, from the call until it is loaded, and its megabytes."""
    metrics: list[dict[str, float]] = []
    if backend == "object_store":

        def push() -> None:
            update = learner.weights.remote(1)
            metrics.append(ray.get(worker.update_weights.remote(update), timeout=SECONDS))

    else:
        transfer = GpuTransfer(backend, [learner], [worker], gpus_per_engine=parallel, wait=wait)

        def push() -> None:
            metrics.extend(push_over_gpus(transfer, 1))

    return median_seconds(push), metrics[-1]["megabytes"]


if __name__ == "__main__":
    sys.exit(main())
