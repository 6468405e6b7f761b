"""Shared setup of the loop's benchmarks: the default shapes on a barely trained model, which does not affect speed.

The config is configs/ablations/old_default.yaml, as for the documented figures: one discriminator update every five
iterations, and no likelihood loss on the demonstrations.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.actors.placement import find_placement
from rlgaf_ray.actors.roles import RayRoles
from rlgaf_ray.actors.warmup import Warmups, prepare_warmups
from rlgaf_ray.config import Config, load_config
from rlgaf_ray.loop.adversarial import AdversarialLoop
from rlgaf_ray.loop.callback import Callbacks
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.roles import Roles
from rlgaf_ray.run.preparation import Data, Prepared, cache_folder, prepare_data, prepare_evaluator
from rlgaf_ray.run.session import ray_roles
from rlgaf_ray.tracking.build import open_trackers

WORK = Path(__file__).parents[1] / "configs" / "ablations" / "old_default.yaml"
SHORT_WARMUP = ["warmup.sft.steps=0", "warmup.discriminator.steps=10", "evaluation.num_prompts=200"]


@dataclass
class Bench:
    """The prepared config, data and models of a benchmark."""

    config: Config
    data: Data
    warmups: Warmups
    folder: Path
    cache: Path

    def ray_roles(self) -> RayRoles:
        prepared = Prepared(self.config, self.data, self.warmups)
        return ray_roles(prepared, find_placement(self.config), Callbacks())

    def loop(self, roles: Roles, name: str) -> AdversarialLoop:
        """Build a loop to step manually, with trackers as in a real run."""
        folder = self.folder / name
        folder.mkdir()
        evaluator = prepare_evaluator(self.config, self.data, self.cache)
        trackers = open_trackers(self.config, folder)
        checkpoints = Checkpoints(folder / "checkpoints", keep=1)
        loop = AdversarialLoop(
            self.config, roles, self.data.task, self.data.tokenizer, evaluator, trackers, checkpoints
        )
        roles.push_weights(0)()
        return loop


@contextmanager
def bench(*overrides: str) -> Iterator[Bench]:
    """Start Ray and prepare the data and the models."""
    config = load_config(WORK, [*SHORT_WARMUP, *overrides])
    cache = cache_folder(config)
    with ray_session(config), TemporaryDirectory() as folder:
        data = prepare_data(config, cache)
        warmups = prepare_warmups(config, data.task, data.tokenizer, cache, lambda name, progress: None)
        yield Bench(config, data, warmups, Path(folder), cache)


def private_bytes(pid: int) -> float:
    """Return the proportional set size (PSS) of a process without the shared memory of the object store."""
    rows = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kib = {row[0].rstrip(":"): float(row[1]) for row in rows}
    return 1024 * (kib["Pss_Anon"] + kib["Pss_File"])


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(values: list[float], form: str = "{:.3f}") -> str:
    """Format the values as "median (minimum to maximum)"."""
    return f"{form.format(statistics.median(values))} ({form.format(min(values))} to {form.format(max(values))})"
