"""Peak extra memory of a push of 500 MB: at once against part by part, from one learner and from two FSDP ranks.

    python benchmarks/push_memory.py

Real actors on Ray (one transformers engine), models of 500 MB in float32. During a push, the driver continuously reads
the private memory of rank 0 and of itself, and the size of the object store. Bar: the peak growth of rank 0 and the
object store together is at most half of the model's size, that of the driver less than a hundredth.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from rlgaf_ray.actors.cluster import cluster_resources, ray_session
from rlgaf_ray.actors.placement import plan_placement
from rlgaf_ray.actors.roles import RayRoles
from rlgaf_ray.config import Config, load_config
from rlgaf_ray.models.generator import build_tiny_gpt2

PUSHES = 3
BAR, DRIVER_BAR = 0.5, 0.01
AT_ONCE = "weights.bucket_mib=100000"
TWO = ("learner.num_workers=2", "learner.strategy=fsdp")


@dataclass
class Peak:
    """Largest growth in bytes over all pushes."""

    together: int = 0  # rank 0 and the object store at the same time
    rank: int = 0
    store: int = 0
    driver: int = 0
    seconds: float = 0.0  # duration of the last push


def private_bytes(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/PID/status: this benchmark needs Linux")


def store_bytes(state: object) -> int:
    return get_memory_info_reply(state).store_stats.object_store_bytes_used


def measure(generator: Path, discriminator: Path, *overrides: str) -> Peak:
    settings = ["rollout.engine=transformers", "rollout.num_workers=1", "learner.precision=float32", *overrides]
    config = load_config(None, ["generator.average_decay=0", *settings])
    cpus, gpus, node_cpus = cluster_resources()
    placement = plan_placement(config, cluster_cpus=cpus, cluster_gpus=gpus, node_cpus=node_cpus)
    roles = RayRoles(generator, discriminator, config, placement, max_tokens=32, pad_token_id=0)
    try:
        process = ray.get(roles.learners[0].__ray_call__.remote(lambda learner: os.getpid()))
        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        roles.push_weights(0)()  # the first push imports and connects
        peak, running = Peak(), True
        before = private_bytes(process), store_bytes(state), private_bytes(os.getpid())

        def watch() -> None:
            while running:
                rank, store = private_bytes(process) - before[0], store_bytes(state) - before[1]
                peak.rank, peak.store = max(peak.rank, rank), max(peak.store, store)
                peak.together = max(peak.together, rank + store)
                peak.driver = max(peak.driver, private_bytes(os.getpid()) - before[2])
                time.sleep(0.001)

        watcher = threading.Thread(target=watch)
        watcher.start()
        for version in range(1, 1 + PUSHES):
            start = time.perf_counter()
            roles.push_weights(version)()
            peak.seconds = time.perf_counter() - start
        running = False
        watcher.join()
        return peak
    finally:
        roles.close()


def main() -> int:
    disable_progress_bar()
    llama = LlamaConfig(
        vocab_size=16_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=14,
        num_attention_heads=12,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    models: dict[str, PreTrainedModel] = {
        "GPT-2 small": GPT2LMHeadModel(GPT2Config()),
        "Llama, 14 layers": LlamaForCausalLM(llama),
    }
    table = Table(title=f"Peak extra memory of a push, float32, {PUSHES} pushes, of the model's size")
    for column in ("model", "MB", "learner", "push", "rank 0 and store", "rank 0", "store", "driver", "seconds"):
        table.add_column(column, justify="left" if column in ("model", "learner", "push") else "right")
    console = Console()
    missed = False
    with ray_session(Config()), TemporaryDirectory() as folder:
        small = Path(folder) / "discriminator"
        build_tiny_gpt2(vocab_size=1000, end_of_text_id=0, seed=0).save_pretrained(small)
        sizes = {}
        for name, model in models.items():
            model.save_pretrained(Path(folder) / name)
            sizes[name] = sum(parameter.nbytes for parameter in model.parameters())
        models.clear()
        for name, learner, push, overrides in (
            ("GPT-2 small", "one", "at once", (AT_ONCE,)),
            ("GPT-2 small", "one", "32 MiB at a time", ()),
            ("Llama, 14 layers", "two, FSDP", "32 MiB at a time", TWO),
        ):
            peak, size = measure(Path(folder) / name, small, *overrides), sizes[name]
            shares = [value / size for value in (peak.together, peak.rank, peak.store, peak.driver)]
            table.add_row(
                name, f"{size / 1e6:.0f}", learner, push, *(f"{share:.2f}" for share in shares), f"{peak.seconds:.2f}"
            )
            if push != "at once":
                met = shares[0] <= BAR and shares[3] <= DRIVER_BAR
                missed |= not met
                console.print(
                    f"{name}, {learner}: {shares[0]:.2f} of the model (bar {BAR}), driver {shares[3]:.3f} "
                    f"(bar {DRIVER_BAR}): {'met' if met else 'missed'}"
                )
    console.print(table)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
