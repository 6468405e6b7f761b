"""Scaling of the loop with the number of rollout workers, on simulated nodes of one machine.

    python benchmarks/scaling.py [--out docs/figures/scaling.svg] [key=value ...]

Ray, the placement group, ``RayRoles``, the loop's step with its prompts, seeds, metrics and trackers, and a push of the
built-in model's 10 MB to every worker are real. Engines, discriminator and learner only **sleep** for a given compute
time (``Sleeps``), so that 16 workers fit on two cores. Each worker samples 16 rollouts per iteration. Two series:

- The learner group grows with the rollouts, so that an update takes constant time. Bar: throughput >= 0.95 of linear.
- One learner of fixed speed. A synchronous loop reaches 1 / (r / W + l) rollouts/s with W workers, r seconds of a
  worker and l seconds of the learner per rollout. Bar: throughput >= 0.95 of this law.

Bar of both: the driver's time per iteration, i.e. the CPU time of the loop's thread, <= 20 ms + 0.1 ms per rollout. The
table also lists the CPU time of the driver's process, with Ray's threads and those that serve the workers. The rest of
an iteration is communication: calls, results, and the pushed weights between nodes, which share one machine here.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))
from local_cluster import local_cluster

from rlgaf_ray.actors import roles as roles_module
from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.actors.placement import find_placement
from rlgaf_ray.actors.roles import RayRoles
from rlgaf_ray.config import Config, load_config
from rlgaf_ray.config.discriminator import BatchNeeds
from rlgaf_ray.loop.adversarial import AdversarialLoop
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.report.figures import save
from rlgaf_ray.run.preparation import Data, prepare_data
from rlgaf_ray.tracking.build import open_trackers
from rlgaf_ray.types import Metrics, Prompt, Rollout, SamplingSettings, ScoredRollout, WeightUpdate

WORKERS = (1, 2, 4, 8, 16)
ROLLOUTS_A_WORKER, ITERATIONS, UNTIMED = 16, 5, 1
NODES = [(8, 0)] * 3
LINEAR_BAR = 0.95
PARAMETERS = 2_617_344  # parameters of the built-in model, the size of a push


@dataclass(frozen=True)
class Sleeps:
    """Simulated compute times in seconds. 16 rollouts take 2 s, like 768 tokens of a mid-sized model on one GPU."""

    rollout: float = 0.125
    update: float = 0.05  # per batch, for a learner group that grows with it
    update_rollout: float = 0.0  # per rollout, for a single learner

    def of_update(self, rollouts: int) -> float:
        return self.update + self.update_rollout * rollouts


GROWING, FIXED = Sleeps(), Sleeps(update=0.0, update_rollout=0.03)
SERIES = {"learner grows with the rollouts": GROWING, "one learner, 30 ms a rollout": FIXED}


class SleepingRollouts:
    """Replaces ``RolloutWorker``."""

    def __init__(self, sleeps: Sleeps, tokens: int) -> None:
        self.sleeps, self.tokens, self.version = sleeps, tokens, 0
        self.draw = np.random.default_rng(0)

    def start(self, transfer: str) -> None:
        pass

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        time.sleep(self.sleeps.rollout * len(seeds))
        repeated = [prompt for prompt in prompts for _ in range(sampling.samples_per_prompt)]
        return [
            Rollout(
                prompt_id=prompt.prompt_id,
                prompt_ids=prompt.token_ids,
                response_ids=self.draw.integers(1, 4000, self.tokens, dtype=np.int32),
                behaviour_logprobs=np.full(self.tokens, -3.0, np.float32),
                finish_reason="length",
                policy_version=self.version,
            )
            for prompt in repeated
        ]

    def update_weights(self, update: WeightUpdate) -> Metrics:
        self.version = update.policy_version
        return {"load_seconds": 0.0, "megabytes": update.arrays["weights"].nbytes / 1e6}


class SleepingDiscriminator:
    def __init__(self) -> None:
        self.version = 0

    def batch_needs(self) -> BatchNeeds:
        return BatchNeeds()

    def token_scores(self, rollouts: Sequence[Rollout]) -> tuple[np.ndarray, int]:
        return np.zeros(sum(len(rollout.response_ids) for rollout in rollouts), np.float32), self.version

    def update_after(self, task: object, *batches: Any) -> Metrics:
        self.version += 1
        return {"discriminator/loss": 0.0}


class SleepingLearner:
    def __init__(self, sleeps: Sleeps) -> None:
        self.sleeps = sleeps

    def update(self, scored: Sequence[ScoredRollout], *, iteration: int, text: object) -> Metrics:
        time.sleep(self.sleeps.of_update(len(scored)))
        return {"generator/loss": 0.0, "generator/kl": 0.0, "generator/entropy": 1.0}

    def num_parts(self) -> int:
        return 1

    def weights_after(self, policy_version: int, part: int, network: str) -> WeightUpdate:
        return WeightUpdate(policy_version, {"weights": np.zeros(PARAMETERS, np.float32)}, {"weights": "float32"})


def replace_actors(module: Any, sleeps: Sleeps, tokens: int) -> None:
    """Replace the actor classes of ``RayRoles`` by the sleeping ones."""
    module.RolloutActor = ray.remote(_ignoring_arguments(SleepingRollouts, sleeps, tokens))
    module.DiscriminatorActor = ray.remote(_ignoring_arguments(SleepingDiscriminator))
    module.LearnerActor = ray.remote(_ignoring_arguments(SleepingLearner, sleeps))


def _ignoring_arguments(base: Any, *own: Any) -> type:
    """Return a subclass whose constructor ignores the real actor's arguments."""

    class Actor(base):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*own)

    Actor.__name__ = base.__name__
    return Actor


@dataclass
class Row:
    workers: int
    rollouts: int
    iteration: float
    driver: float  # CPU seconds of the loop's thread
    process: float  # CPU seconds of all threads of the driver
    asleep: float

    @property
    def communication(self) -> float:
        return self.iteration - self.asleep - self.driver

    @property
    def per_second(self) -> float:
        return self.rollouts / self.iteration

    @property
    def driver_bar(self) -> float:
        return 0.02 + 1e-4 * self.rollouts


def overrides_of(workers: int, extra: list[str]) -> list[str]:
    return [
        f"rollout.num_workers={workers}",
        f"rollout.batch_size={ROLLOUTS_A_WORKER * workers}",
        "cluster.placement=spread",
        "cluster.cpus_per_actor=1",
        "warmup.num_workers=1",
        "discriminator.updates_per_generator_update=0.2",
        "generator.average_decay=0",
        "generator.reinforce.demonstration_coefficient=0",
        "evaluation.num_prompts=40",
        "task.imdb.splits={base: 400, demonstrations: 1000, judge_validation: 300, judge_test: 300, validation: 120, "
        "test: 120}",
        "model.generator=tiny-gpt2",
        *extra,
    ]


def measure(config: Config, data: Data, sleeps: Sleeps, folder: Path) -> Row:
    workers, rollouts = config.rollout.num_workers or 1, config.rollout.batch_size
    replace_actors(roles_module, sleeps, config.task.response_tokens)
    roles = RayRoles(folder, folder, config, find_placement(config), max_tokens=32, pad_token_id=0)
    try:
        evaluator: Any = None  # nothing is evaluated
        trackers = open_trackers(config, folder)
        checkpoints = Checkpoints(folder / "checkpoints", keep=1)
        loop = AdversarialLoop(config, roles, data.task, data.tokenizer, evaluator, trackers, checkpoints)
        loop.push()
        for _ in range(UNTIMED):
            loop.train_step()
        times, driver, process = [], [], []
        for _ in range(ITERATIONS):
            started, computed, in_all = time.perf_counter(), time.thread_time(), time.process_time()
            loop.train_step()
            times.append(time.perf_counter() - started)
            driver.append(time.thread_time() - computed)
            process.append(time.process_time() - in_all)
        trackers.close()
    finally:
        roles.close()
    asleep = sleeps.rollout * rollouts / workers + sleeps.of_update(rollouts)
    iteration, own, in_all = (statistics.median(seconds) for seconds in (times, driver, process))
    return Row(workers, rollouts, iteration, own, in_all, asleep)


def law(workers: int, sleeps: Sleeps) -> float:
    """Return the rollouts/s of a synchronous loop without overhead."""
    rollouts = ROLLOUTS_A_WORKER * workers
    return rollouts / (sleeps.rollout * ROLLOUTS_A_WORKER + sleeps.of_update(rollouts))


def plot(results: dict[str, list[Row]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for (name, rows), marker in zip(results.items(), "os", strict=True):
        workers = [row.workers for row in rows]
        (line,) = left.plot(workers, [row.per_second for row in rows], marker, label=f"measured: {name}")
        fine = np.linspace(1, WORKERS[-1], 50)
        left.plot(fine, [law(each, SERIES[name]) for each in fine], color=line.get_color(), label="law")
        right.plot([row.rollouts for row in rows], [1e3 * row.driver for row in rows], marker, label=name)
    first = next(iter(results.values()))[0]
    left.plot(WORKERS, [first.per_second * each for each in WORKERS], ":", color="grey", label="linear")
    left.set(xlabel="rollout workers", ylabel="rollouts/s", xscale="log", yscale="log", xticks=WORKERS)
    left.set_xticklabels(WORKERS)
    right.plot([16, 256], [20 + 1.6, 20 + 25.6], "--", color="grey", label="bar: 20 ms + 0.1 ms a rollout")
    right.set(xlabel="rollouts an iteration", ylabel="driver, ms an iteration", ylim=(0, None))
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="file for the figure")
    parser.add_argument("--workers", type=lambda text: [int(part) for part in text.split(",")], default=list(WORKERS))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    results: dict[str, list[Row]] = {}
    with local_cluster(NODES) as address, TemporaryDirectory() as temporary:
        folder = Path(temporary)
        extra = [f"cluster.address={address}", *arguments.overrides]
        with ray_session(load_config(None, extra)):
            data = prepare_data(load_config(None, overrides_of(1, extra)), folder / "cache")
            for name, sleeps in SERIES.items():
                results[name] = []
                for workers in arguments.workers:
                    run = folder / f"{len(results)}-{workers}"
                    run.mkdir()
                    results[name].append(measure(load_config(None, overrides_of(workers, extra)), data, sleeps, run))
    missed = report(results)
    if arguments.out:
        plot(results, arguments.out)
    return int(missed)


def report(results: dict[str, list[Row]]) -> bool:
    missed = False
    for name, rows in results.items():
        table = Table(title=f"{name}: median of {ITERATIONS} iterations; engines, discriminator and learner sleep")
        columns = ("workers", "rollouts", "iteration s", "sleeping s", "rollouts/s", "of linear", "of the law")
        for column in (*columns, "driver ms (bar)", "process ms", "communication ms"):
            table.add_column(column, justify="right")
        for row in rows:
            linear = row.per_second / (rows[0].per_second * row.workers / rows[0].workers)
            of_law = row.per_second / law(row.workers, SERIES[name])
            missed |= row.driver > row.driver_bar
            missed |= (linear if SERIES[name] is GROWING else of_law) < LINEAR_BAR
            table.add_row(
                str(row.workers),
                str(row.rollouts),
                f"{row.iteration:.3f}",
                f"{row.asleep:.3f}",
                f"{row.per_second:.1f}",
                f"{linear:.3f}",
                f"{of_law:.3f}",
                f"{1e3 * row.driver:.0f} ({1e3 * row.driver_bar:.0f})",
                f"{1e3 * row.process:.0f}",
                f"{1e3 * row.communication:.0f}",
            )
        Console(width=120).print(table)
    return missed


if __name__ == "__main__":
    sys.exit(main())
