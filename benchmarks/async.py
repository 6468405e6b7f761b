"""Asynchronous against synchronous schedule, with rollouts and learning on one core each, and against TRL.

    python benchmarks/async.py [key=value ...]      (the row of TRL needs pip install -e ".[cpu,bench]")

The rollout worker is pinned to one core, learner and discriminator to another, as a model of two machines. The
discriminator scores but is frozen, like the scorer of TRL's GRPOTrainer (versus_trl.py, on all cores): all contenders
do the same work, in phases of about the same length. The synchronous schedule with the same pins leaves one core idle
at any time. Without pins, each phase uses both cores; that row shows the value of the schedule on a single machine. The
last two rows train the discriminator every five iterations. The contenders take turns for five rounds in one call;
medians are reported. The first iterations of a round, which fill the pipeline, are not timed. The maximum speedup by
overlap is the sum of the phases over the longer phase. The pinned synchronous row waits for each phase in full, the
asynchronous rows only for the part that does not overlap.

Bars: 1.6 times the synchronous loop with the same pins, 2 times TRL.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
from dataclasses import replace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import ray
from common import Bench, bench, spread
from rich.console import Console
from rich.table import Table

from rlgaf_ray.actors.cluster import cluster_resources
from rlgaf_ray.actors.roles import RayRoles
from rlgaf_ray.config import with_values
from rlgaf_ray.loop.adversarial import AdversarialLoop
from rlgaf_ray.loop.schedule import Async

ROUNDS, ITERATIONS, UNTIMED, BAR, TRL_BAR = 5, 15, 4, 1.6, 2.0
SAME_KL = [f"generator.reinforce.kl.{setting}" for setting in ("estimator=k3", "placement=loss", "coefficient=0.05")]
EVERYONE = {"run.iterations": 10**6, "cluster.cpus_per_actor": 0.1}  # the actors of all contenders share the cores
FROZEN = {"discriminator.updates_per_generator_update": 0.0}
ONE_CORE_EACH = {"rollout.num_workers": 1, "cluster.threads": 1}
SAMPLING = ("time/rollout",)
LEARNING = ("time/score", "time/generator_update", "time/push", "time/discriminator_wait")


class Contender:
    """A loop with its own actors, stepped manually."""

    def __init__(self, setup: Bench, name: str, values: dict[str, Any], pins: tuple[int, int] | None) -> None:
        setup = replace(setup, config=with_values(setup.config, EVERYONE | values))
        roles = setup.ray_roles()
        if pins is not None:
            pin(roles, *pins)
        self.loop: AdversarialLoop = setup.loop(roles, name)
        self.batch_size = setup.config.rollout.batch_size
        self.rounds: list[dict[str, float]] = []  # the mean metrics of each round

    def round(self) -> None:
        for _ in range(UNTIMED):
            self.loop.train_step()
        rows = [self.loop.train_step() for _ in range(ITERATIONS)]
        self.rounds.append({name: statistics.mean(row.get(name, 0.0) for row in rows) for name in rows[0]})
        if isinstance(self.loop.train_step.schedule, Async):  # the next contender needs the cores
            for slot in self.loop.train_step.schedule.slots:
                slot.rollouts()

    def seconds(self, *names: str) -> list[float]:
        return [sum(row[name] for name in names) for row in self.rounds]


def pin(roles: RayRoles, sampling_core: int, learning_core: int) -> None:
    """Pin every thread of each actor to its core."""
    cores = dict.fromkeys(roles.pool.workers, sampling_core)
    cores |= dict.fromkeys([*roles.learners, *roles.discriminators], learning_core)
    ray.get([actor.__ray_call__.remote(_pin_threads, core) for actor, core in cores.items()])


def _pin_threads(actor: Any, core: int) -> None:
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})


def main() -> int:
    console = Console(width=120)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        console.print("this benchmark needs two cores: one for the rollouts, one for the learner")
        return 2
    asynchronous = ONE_CORE_EACH | {"schedule.mode": "async", "schedule.max_staleness": 1}
    pins = (cores[0], cores[1])
    with bench(*SAME_KL, *sys.argv[1:]) as setup:
        contenders = {
            "synchronous, one core each": Contender(setup, "pinned", ONE_CORE_EACH | FROZEN, pins),
            "asynchronous (k=1), one core each": Contender(setup, "async", asynchronous | FROZEN, pins),
            "synchronous, no pins, all cores": Contender(setup, "unpinned", FROZEN, None),
            "synchronous, discriminator trained": Contender(setup, "pinned_trained", ONE_CORE_EACH, pins),
            "asynchronous, discriminator trained": Contender(setup, "async_trained", asynchronous, pins),
        }
        theirs = Theirs(setup) if importlib.util.find_spec("trl") else None
        for turn in range(ROUNDS):
            for contender in contenders.values():
                contender.round()
            if theirs is not None:
                theirs.round(turn)
    table = Table(title=f"median of {ROUNDS} rounds x {ITERATIONS} iterations (min to max)")
    for head in ("", "seconds", "samples/s", "waiting for samples", "for the rest", "speedup of asynchronous"):
        table.add_column(head, justify="right" if head else "left")
    seconds = {name: contender.seconds("time/iteration") for name, contender in contenders.items()}
    batch_size = setup.config.rollout.batch_size
    (pinned, fast, *_) = contenders
    ratios = {name: statistics.median(values) / statistics.median(seconds[fast]) for name, values in seconds.items()}
    for name, values in seconds.items():
        rollouts, rest = (contenders[name].seconds(*names) for names in (SAMPLING, LEARNING))
        rates = spread([batch_size / value for value in values], "{:.0f}")
        table.add_row(name, spread(values), rates, spread(rollouts), spread(rest), f"{ratios[name]:.2f}")
    if theirs is not None:
        ratios["trl"] = statistics.median(theirs.seconds) / statistics.median(seconds[fast])
        rates = spread([batch_size / value for value in theirs.seconds], "{:.0f}")
        table.add_row("TRL GRPOTrainer, all cores", spread(theirs.seconds), rates, "", "", f"{ratios['trl']:.2f}")
    console.print(table)
    phases = [statistics.median(contenders[pinned].seconds(*names)) for names in (SAMPLING, LEARNING)]
    console.print(
        f"phases {phases[0]:.3f} and {phases[1]:.3f} s: maximum speedup {sum(phases) / max(phases):.2f}; "
        f"bars: {BAR} over synchronous with the same pins, {TRL_BAR} over TRL"
    )
    if theirs is None:
        console.print('TRL was not measured: pip install -e ".[cpu,bench]"')
    return 0 if ratios[pinned] >= BAR and ratios.get("trl", TRL_BAR) >= TRL_BAR else 1


class Theirs:
    """TRL in its own process, on all cores."""

    def __init__(self, setup: Bench) -> None:
        from versus_trl import Trl

        environment = {"env_vars": {"OMP_NUM_THREADS": str(cluster_resources()[2]), "HF_HUB_OFFLINE": "1"}}
        actor: Any = ray.remote(Trl)
        self.actor = actor.options(num_cpus=0, runtime_env=environment).remote(setup)
        self.seconds: list[float] = []

    def round(self, turn: int) -> None:
        self.seconds.append(ray.get(self.actor.seconds.remote(turn)))


if __name__ == "__main__":
    sys.exit(main())
