"""What the loop's benchmarks share: the main job's shapes on a hardly trained model (speed does not depend on it).

The work is that of configs/ablations/old_default.yaml, which the documented figures are of: one update of the
discriminator in five iterations, none of them on the demonstrations' likelihood.
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
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.roles import Roles
from rlgaf_ray.tracking.build import open_trackers
from rlgaf_ray.train import Data, cache_folder, prepare_data, prepare_evaluator

WORK = Path(__file__).parents[1] / "configs" / "ablations" / "old_default.yaml"
SHORT_WARMUP = ["warmup.sft.steps=0", "warmup.discriminator.steps=10", "evaluation.num_prompts=200"]


@dataclass
class Bench:
    config: Config
    data: Data
    warmups: Warmups
    folder: Path
    cache: Path

    def ray_roles(self) -> RayRoles:
        placement = find_placement(self.config)
        tokenizer = self.data.tokenizer
        return RayRoles(
            self.warmups.generator,
            self.warmups.discriminator,
            self.config,
            placement,
            max_tokens=self.data.task.max_tokens,
            pad_token_id=tokenizer.pad_token_id,
            base_folder=self.warmups.base,
        )

    def loop(self, roles: Roles, name: str) -> AdversarialLoop:
        """A loop that is stepped by hand, with its trackers on, as in a real run."""
        folder = self.folder / name
        folder.mkdir()
        evaluator = prepare_evaluator(self.config, self.data, self.cache)
        trackers = open_trackers(self.config, folder)
        checkpoints = Checkpoints(folder / "checkpoints", keep=1)
        loop = AdversarialLoop(
            self.config, roles, self.data.task, self.data.tokenizer, evaluator, trackers, checkpoints, Silent()
        )
        roles.push_weights(0)()
        return loop


class Silent:
    def iteration(self, iteration: int, metrics: dict[str, float]) -> None: ...

    def discriminator_warmup(self, update: int, total: int, metrics: dict[str, float]) -> None: ...

    def message(self, text: str) -> None: ...


@contextmanager
def bench(*overrides: str) -> Iterator[Bench]:
    """A Ray of its own, the data and the models."""
    config = load_config(WORK, [*SHORT_WARMUP, *overrides])
    cache = cache_folder(config)
    with ray_session(config), TemporaryDirectory() as folder:
        data = prepare_data(config, cache)
        warmups = prepare_warmups(config, data.task, data.tokenizer, cache, lambda name, progress: None)
        yield Bench(config, data, warmups, Path(folder), cache)


def private_bytes(pid: int) -> float:
    """Proportional set size of a process, without what it maps of the object store."""
    rows = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kib = {row[0].rstrip(":"): float(row[1]) for row in rows}
    return 1024 * (kib["Pss_Anon"] + kib["Pss_File"])


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(values: list[float], form: str = "{:.3f}") -> str:
    """median (minimum to maximum)"""
    return f"{form.format(statistics.median(values))} ({form.format(min(values))} to {form.format(max(values))})"
