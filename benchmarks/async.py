"""Asynchronous against synchronous, rollouts and learning on one core each; beside them the alternatives.

    python benchmarks/async.py [key=value ...]      TRL's row asks for pip install -e ".[cpu,bench]"

The rollout worker is pinned to one core, learner and discriminator to another: two machines in the small. The
discriminator scores and is frozen, as the scorer of TRL's GRPOTrainer is (versus_trl.py, which has all cores): the same
work on every side, and phases of about the same length. Synchronous with the same pins leaves one core idle at any
moment. Without pins, whoever is at work has both cores: that row says what the schedule is worth where everything
shares one machine. The last two of ours train the discriminator every five iterations. All in
turn, five rounds in one call, medians. In each round the first iterations, in which the pipeline fills, are not
timed. The best that overlap can give is the sum of the phases over the longer one: in the pinned synchronous row the
loop waits for each of them, in the asynchronous ones for what overlap has not hidden.

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
EVERYONE = {"run.iterations": 10**6, "cluster.cpus_per_actor": 0.1}  # all contenders' actors wait on the same cores
FROZEN = {"discriminator.updates_per_generator_update": 0.0}
ONE_CORE_EACH = {"rollout.num_workers": 1, "cluster.threads": 1}
SAMPLING = ("time/rollout",)
LEARNING = ("time/score", "time/generator_update", "time/push", "time/discriminator_wait")


class Contender:
    """A loop with actors of its own, stepped by hand."""

    def __init__(self, setup: Bench, name: str, values: dict[str, Any], pins: tuple[int, int] | None) -> None:
        setup = replace(setup, config=with_values(setup.config, EVERYONE | values))
        roles = setup.ray_roles()
        if pins is not None:
            pin(roles, *pins)
        self.loop: AdversarialLoop = setup.loop(roles, name)
        self.batch_size = setup.config.rollout.batch_size
        self.rounds: list[dict[str, float]] = []  # means of their metrics

    def round(self) -> None:
        for _ in range(UNTIMED):
            self.loop.train_step()
        rows = [self.loop.train_step() for _ in range(ITERATIONS)]
        self.rounds.append({name: statistics.mean(row.get(name, 0.0) for row in rows) for name in rows[0]})
        if isinstance(self.loop.train_step.schedule, Async):  # the next contender has the cores to itself
            for slot in self.loop.train_step.schedule.slots:
                slot.rollouts()

    def seconds(self, *names: str) -> list[float]:
        return [sum(row[name] for name in names) for row in self.rounds]


def pin(roles: RayRoles, sampling_core: int, learning_core: int) -> None:
    """Every thread of each actor to its core."""
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
        console.print("two cores are needed: one for the rollouts, one for the learner")
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
    for head in ("", "seconds", "samples/s", "waited for samples", "for the rest", "asynchronous: times as fast"):
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
        f"phases {phases[0]:.3f} and {phases[1]:.3f} s: overlap can give {sum(phases) / max(phases):.2f}; "
        f"bars: {BAR} over synchronous with the same pins, {TRL_BAR} over TRL"
    )
    if theirs is None:
        console.print('TRL was not measured: pip install -e ".[cpu,bench]"')
    return 0 if ratios[pinned] >= BAR and ratios.get("trl", TRL_BAR) >= TRL_BAR else 1


class Theirs:
    """TRL's process, on all cores."""

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
