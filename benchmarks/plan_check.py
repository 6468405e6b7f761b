"""The memory and traffic estimates of ``rlgaf plan`` against measurements of a short run.

    python benchmarks/plan_check.py

Memory: two models with random weights, the built-in one and one of GPT-2's size, with real actors and vLLM for three
iterations. The memory of a process is its peak proportional set size without the object store, sampled ten times a
second. The object store additionally holds the pushed weights.

Traffic: weight pushes of the model of GPT-2's size between simulated nodes, measured by the byte counter of the
loopback device; the engine is transformers, since nothing is sampled. The traffic is the update to each node with a
rollout worker and, for a sharded learner, the shards gathered by every rank; the plan states this for one rank.

Bar: every actor, and every push, within 20 % of the plan.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import ray
from common import private_bytes
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))
from local_cluster import local_cluster

from rlgaf_ray.actors.cluster import cluster_nodes, ray_session
from rlgaf_ray.actors.placement import Placement, find_placement
from rlgaf_ray.actors.roles import RayRoles
from rlgaf_ray.config import Config, load_config
from rlgaf_ray.models.generator import FROM_SCRATCH_VOCABULARY, build_tiny_gpt2
from rlgaf_ray.plan.command import learns_in_bfloat16
from rlgaf_ray.plan.estimate import Estimate, Hardware, Role, estimate
from rlgaf_ray.plan.model import shape_of
from rlgaf_ray.plan.shape import MIB
from rlgaf_ray.plan.speed import ASSUMED_CORE
from rlgaf_ray.types import Demonstration, Prompt, SamplingSettings

ITERATIONS, PUSHES, BAR = 3, 3, 0.2
NODES = [(1, 0)] * 5  # one actor per node, so that Ray has no choice of placement
ROLES: tuple[Role, ...] = ("learner", "discriminator", "rollout")
SIZES = ["task.prompt_tokens=8", "rollout.num_workers=1", "evaluation.num_prompts=10"]
SIZES += ["discriminator.frozen_layers=0", "generator.average_decay=0"]  # as in docs/log/2026-11-27-scaling.md
BATCHES = {  # rollouts, micro-batch size and response tokens
    "tiny GPT-2": ["rollout.batch_size=256", "learner.micro_batch_size=64", "task.response_tokens=56"],
    "GPT-2's size": ["rollout.batch_size=16", "learner.micro_batch_size=8", "task.response_tokens=24"],
}
LEARNERS = {
    "one learner": ["learner.num_workers=1"],
    "two ranks, FSDP": ["learner.num_workers=2", "learner.strategy=fsdp"],
}


@contextmanager
def sampled(pids: dict[Role, int]) -> Iterator[dict[Role, float]]:
    """Yield the peak memory of each process, updated while the block runs."""
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


def iterate(roles: RayRoles, config: Config, vocab_size: int) -> None:
    """Run iterations on random tokens, which do not affect the measurement."""
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
        rewarded = [replace(item, reward=item.score) for item in scored]
        generator_update = roles.update_generator(rewarded, iteration=iteration, text=None)
        fake = [item.rollout for item in scored]
        discriminator_update = roles.update_discriminator(demonstrations(), fake, demonstrations())
        push = roles.push_weights(iteration + 1)
        generator_update(), discriminator_update(), push()


def plan(config: Config, model: GPT2LMHeadModel, placement: Placement) -> Estimate:
    hardware = Hardware(cluster_nodes(), 0.0)
    return estimate(config, shape_of(model), placement, hardware, ASSUMED_CORE, bfloat16=learns_in_bfloat16(config))


def measure(name: str, model: GPT2LMHeadModel, folder: Path) -> list[tuple[str, float, float, float]]:
    """Return for each actor its name and its bytes: planned, idle before the first iteration, and peak."""
    model.save_pretrained(folder)
    overrides = [f"model.generator={folder}", *SIZES, *BATCHES[name]]
    overrides += ["discriminator.batch_size=64" if name == "tiny GPT-2" else "discriminator.batch_size=16"]
    config = load_config(None, overrides)
    max_tokens = config.task.prompt_tokens + config.task.response_tokens
    placement = find_placement(config)
    planned = plan(config, model, placement)
    vocab_size = model.config.vocab_size
    roles = RayRoles(folder, folder, config, placement, max_tokens=max_tokens, pad_token_id=0)
    try:
        actors = dict(zip(ROLES, (roles.learners[0], roles.discriminators[0], roles.pool.workers[0]), strict=True))
        pids = {role: ray.get(actor.__ray_call__.remote(lambda self: os.getpid())) for role, actor in actors.items()}
        time.sleep(1.0)
        at_rest = {role: private_bytes(pid) for role, pid in pids.items()}
        with sampled(pids) as peaks:
            iterate(roles, config, vocab_size)
    finally:
        roles.close()
    return [(f"{name}: {role}", planned.memory[role].total, at_rest[role], peaks[role]) for role in ROLES]


def pushed_bytes(model: GPT2LMHeadModel, folder: Path, address: str, learner: list[str]) -> tuple[float, float]:
    """Return the network bytes of one push: planned, and the median of the measurements."""
    overrides = [f"model.generator={folder}", *SIZES, "rollout.num_workers=2", "rollout.engine=transformers", *learner]
    overrides += ["cluster.placement=spread", "cluster.cpus_per_actor=1", f"cluster.address={address}"]
    config = load_config(None, overrides)
    placement = find_placement(config)
    push = plan(config, model, placement).push
    roles = RayRoles(folder, folder, config, placement, max_tokens=32, pad_token_id=0)
    try:
        roles.push_weights(0)()
        counts = [network_bytes()]
        for version in range(1, PUSHES + 1):
            roles.push_weights(version)()
            counts.append(network_bytes())
    finally:
        roles.close()
    measured = statistics.median(after - before for before, after in pairwise(counts))
    return push.gathered * placement.num_learners + push.sent, measured


def network_bytes() -> int:
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def main() -> int:
    disable_progress_bar()
    models = {
        "tiny GPT-2": build_tiny_gpt2(vocab_size=FROM_SCRATCH_VOCABULARY, end_of_text_id=0, seed=0),
        "GPT-2's size": GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
    }
    rows: list[tuple[str, float, float, float]] = []
    pushes: list[tuple[str, float, float]] = []
    with TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / str(number) for number, name in enumerate(models)}
        with ray_session(load_config(None, [])):
            for name, model in models.items():
                rows += measure(name, model, folders[name])
        name, model = list(models.items())[-1]
        with local_cluster(NODES) as address, ray_session(load_config(None, [f"cluster.address={address}"])):
            for learner, overrides in LEARNERS.items():
                pushes.append((f"{name}: {learner}", *pushed_bytes(model, folders[name], address, overrides)))
    console = Console()
    table = Table(title=f"MiB of each actor, {ITERATIONS} iterations (bar: within {BAR:.0%} of the plan)")
    for column in ("actor", "planned", "idle", "peak", "planned / peak"):
        table.add_column(column, justify="left" if column == "actor" else "right")
    for name, planned, at_rest, peak in rows:
        table.add_row(name, *(f"{size / MIB:,.0f}" for size in (planned, at_rest, peak)), f"{planned / peak:.2f}")
    console.print(table)
    table = Table(title=f"MiB over the network, median of {PUSHES} pushes (bar: within {BAR:.0%} of the plan)")
    for column in ("push", "planned", "measured", "planned / measured"):
        table.add_column(column, justify="left" if column == "push" else "right")
    for name, planned, measured in pushes:
        table.add_row(name, f"{planned / MIB:,.0f}", f"{measured / MIB:,.0f}", f"{planned / measured:.2f}")
    console.print(table)
    ratios = [planned / peak for _, planned, _, peak in rows] + [planned / measured for _, planned, measured in pushes]
    return int(any(abs(ratio - 1) > BAR for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
