"""A synchronous iteration on Ray against the sum of its parts in one process, which measures the overhead of Ray.

    python benchmarks/iteration.py [key=value ...]

Both take turns for five rounds in one call; the actors are idle while the bare parts run. The process of the bare parts
is itself an actor, with the same environment as the others. Bar: ratio of the medians <= 1.05.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from typing import Any

import ray
from common import Bench, bench, seconds, spread
from rich.console import Console
from rich.table import Table

from rlgaf_ray.actors.cluster import cluster_resources
from rlgaf_ray.actors.placement import actor_environment
from rlgaf_ray.engines.build import sampling_settings
from rlgaf_ray.loop.local import LocalRoles
from rlgaf_ray.loop.rollouts import rollout_seeds

ROUNDS, ITERATIONS, UNTIMED, BAR = 5, 20, 5, 1.05
PARTS = ("rollout", "score", "generator update", "push", "discriminator update")


class Bare:
    """Calls all parts of an iteration directly in this process, without the loop's overhead."""

    def __init__(self, setup: Bench, threads: int) -> None:
        self.roles = LocalRoles.build(
            setup.warmups.generator,
            setup.warmups.discriminator,
            setup.config,
            max_tokens=setup.data.task.max_tokens,
            pad_token_id=setup.data.tokenizer.pad_token_id,
            base_folder=setup.warmups.base,
            threads=threads,
        )
        self.loop = setup.loop(self.roles, "bare")

    def round(self, first: int, count: int) -> list[float]:
        """Return the mean seconds of each of ``PARTS`` over ``count`` iterations."""
        rows = [self.iteration(iteration) for iteration in range(first, first + count)]
        return [statistics.mean(column) for column in zip(*rows, strict=True)]

    def iteration(self, iteration: int) -> list[float]:
        roles, config, step = self.roles, self.loop.config, self.loop.train_step
        prompts = step.draws.prompts()
        seeds = rollout_seeds(config, iteration, config.rollout.batch_size)
        results: dict[str, list] = {}
        times = [
            seconds(lambda: results.update(rollouts=roles.generate(prompts, sampling_settings(config), seeds))),
            seconds(lambda: results.update(scored=step.rewards(roles.score(results["rollouts"]), iteration).scored)),
            seconds(lambda: roles.update_generator(results["scored"], iteration=iteration - 1, text=None)),
            seconds(lambda: roles.push_weights(iteration)),
            0.0,
        ]
        for _ in range(step.update_ratio.due()):
            real, contrast = (
                step.draws.real(results["rollouts"]),
                step.draws.contrast(results["rollouts"]),
            )
            times[-1] += seconds(partial(roles.update_discriminator, real, results["rollouts"], contrast))
        return times


def main() -> int:
    console = Console()
    with bench(*sys.argv[1:]) as setup:
        threads = cluster_resources()[2]
        environment = {"env_vars": actor_environment(threads)}
        actor: Any = ray.remote(Bare)
        bare = actor.options(num_cpus=0, runtime_env=environment).remote(setup, threads)
        loop = setup.loop(setup.ray_roles(), "ray")
        ray.get(bare.round.remote(1, UNTIMED))  # first calls allocate and compile
        for _ in range(UNTIMED):
            loop.train_step()
        on_ray, parts = [], []
        for turn in range(ROUNDS):
            on_ray.append(statistics.mean(loop.train_step()["time/iteration"] for _ in range(ITERATIONS)))
            parts.append(ray.get(bare.round.remote(1 + UNTIMED + turn * ITERATIONS, ITERATIONS)))
        batch_size = setup.config.rollout.batch_size
    totals = [sum(row) for row in parts]
    ratio = statistics.median(on_ray) / statistics.median(totals)
    table = Table(
        title=f"one iteration of {batch_size} rollouts, seconds: median of {ROUNDS} rounds x {ITERATIONS} (min to max)"
    )
    table.add_column("")
    table.add_column("seconds", justify="right")
    for name, values in zip(PARTS, zip(*parts, strict=True), strict=True):
        table.add_row(f"bare {name}", spread(list(values)))
    table.add_row("sum of the bare parts", spread(totals))
    table.add_row("iteration on Ray", spread(on_ray))
    table.add_row("samples/s on Ray", spread([batch_size / value for value in on_ray], "{:.0f}"))
    table.add_row(f"ratio (bar: {BAR})", f"{ratio:.3f}")
    console.print(table)
    return 0 if ratio <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
