"""What ``rlgaf plan`` says of memory, against what the actors of a short run hold.

    python benchmarks/plan_check.py

Two models with random weights, the built-in one and one of GPT-2's size; real actors, real vLLM, three iterations. What
a process holds is its proportional set size without the object store, sampled ten times a second; the largest counts.
Bar: every actor within 20 % of the plan. What the object store holds beside them is the pushed weights.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import ray
from common import private_bytes
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

from rlgaf_ray.actors.cluster import cluster_nodes, ray_session
from rlgaf_ray.actors.placement import find_placement
from rlgaf_ray.actors.roles import RayRoles
from rlgaf_ray.config import load_config
from rlgaf_ray.models.generator import FROM_SCRATCH_VOCABULARY, build_tiny_gpt2
from rlgaf_ray.plan.command import learns_in_bfloat16
from rlgaf_ray.plan.estimate import MIB, Hardware, Role, estimate
from rlgaf_ray.plan.model import shape_of
from rlgaf_ray.plan.speed import ASSUMED_CORE
from rlgaf_ray.types import Demonstration, Prompt, SamplingSettings

ITERATIONS, BAR = 3, 0.2
ROLES: tuple[Role, ...] = ("learner", "discriminator", "rollout")
SIZES = ["task.prompt_tokens=8", "rollout.num_workers=1", "evaluation.num_prompts=10"]
BATCHES = {  # rollouts and micro-batch, tokens of a response
    "tiny GPT-2": ["rollout.batch_size=256", "learner.micro_batch_size=64", "task.response_tokens=56"],
    "GPT-2's size": ["rollout.batch_size=16", "learner.micro_batch_size=8", "task.response_tokens=24"],
}


@contextmanager
def sampled(pids: dict[Role, int]) -> Iterator[dict[Role, float]]:
    """The peak of each process, filled in while the block runs."""
    peaks: dict[Role, float] = dict.fromkeys(pids, 0.0)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for role, pid in pids.items():
                peaks[role] = max(peaks[role], private_bytes(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def iterate(roles: RayRoles, config, vocab_size: int) -> None:
    """Some iterations on random tokens: what is measured does not depend on them."""
    draw = np.random.default_rng(0)
    task, batch = config.task, config.discriminator.batch_size

    def tokens(count: int) -> np.ndarray:
        return draw.integers(1, vocab_size, count, dtype=np.int32)

    def demonstrations() -> list[Demonstration]:
        return [Demonstration(tokens(task.prompt_tokens), tokens(task.response_tokens)) for _ in range(batch)]

    sampling = SamplingSettings(
        max_new_tokens=task.response_tokens,
        samples_per_prompt=config.rollout.samples_per_prompt,
        stop_at_end_of_text=False,
    )
    roles.push_weights(0)()
    for iteration in range(ITERATIONS):
        prompts = [Prompt(row, tokens(task.prompt_tokens)) for row in range(config.rollout.prompts_per_iteration)]
        seeds = list(range(config.rollout.batch_size))
        scored = roles.score(roles.generate(prompts, sampling, seeds))
        learned = roles.update_generator(scored, iteration=iteration, pretraining=None)
        told = roles.update_discriminator(demonstrations(), [item.rollout for item in scored], demonstrations())
        pushed = roles.push_weights(iteration + 1)
        learned(), told(), pushed()


def measure(name: str, model: GPT2LMHeadModel, folder: Path) -> list[tuple[str, float, float, float]]:
    """Of each actor its name, and bytes: planned, at rest before the first iteration, at the peak."""
    model.save_pretrained(folder)
    overrides = [f"model.generator={folder}", *SIZES, *BATCHES[name]]
    overrides += ["discriminator.batch_size=64" if name == "tiny GPT-2" else "discriminator.batch_size=16"]
    config = load_config(None, overrides)
    max_tokens = config.task.prompt_tokens + config.task.response_tokens
    placement = find_placement(config)
    planned = estimate(
        config,
        shape_of(model),
        placement,
        Hardware(cluster_nodes(), 0.0),
        ASSUMED_CORE,
        bfloat16=learns_in_bfloat16(config),
    )
    vocab_size = model.config.vocab_size
    roles = RayRoles(folder, folder, config, placement, max_tokens=max_tokens, pad_token_id=0)
    try:
        actors = dict(zip(ROLES, (roles.learners[0], roles.discriminators[0], roles.workers[0]), strict=True))
        pids = {role: ray.get(actor.__ray_call__.remote(lambda self: os.getpid())) for role, actor in actors.items()}
        time.sleep(1.0)
        at_rest = {role: private_bytes(pid) for role, pid in pids.items()}
        with sampled(pids) as peaks:
            iterate(roles, config, vocab_size)
    finally:
        roles.close()
    return [(f"{name}: {role}", planned.memory[role].total, at_rest[role], peaks[role]) for role in ROLES]


def main() -> int:
    disable_progress_bar()
    models = {
        "tiny GPT-2": build_tiny_gpt2(vocab_size=FROM_SCRATCH_VOCABULARY, end_of_text_id=0, seed=0),
        "GPT-2's size": GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
    }
    rows = []
    with ray_session(load_config(None, [])), TemporaryDirectory() as folder:
        for name, model in models.items():
            rows += measure(name, model, Path(folder) / name.replace(" ", "-").replace("'", ""))
    table = Table(title=f"MiB of each actor, {ITERATIONS} iterations (bar: within {BAR:.0%} of the plan)")
    for column in ("actor", "planned", "at rest", "peak", "planned / peak"):
        table.add_column(column, justify="left" if column == "actor" else "right")
    missed = 0
    for name, planned, at_rest, peak in rows:
        ratio = planned / peak
        missed += abs(ratio - 1) > BAR
        table.add_row(name, *(f"{size / MIB:,.0f}" for size in (planned, at_rest, peak)), f"{ratio:.2f}")
    Console().print(table)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
