"""A run in one process, by the parts that ``rlgaf_ray.train`` wires on Ray."""

from __future__ import annotations

from pathlib import Path

from rlgaf_ray.actors.warmup import Warmups
from rlgaf_ray.config import Config
from rlgaf_ray.loop.adversarial import AdversarialLoop, Outcome
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.local import LocalRoles
from rlgaf_ray.tracking.build import open_trackers
from rlgaf_ray.train import Data, prepare_evaluator


class Watcher:
    """Shows nothing; asks the loop to stop after an iteration, as a signal would."""

    def __init__(self, stop_after: int | None) -> None:
        self.stop_after = stop_after
        self.loop: AdversarialLoop | None = None

    def iteration(self, iteration: int, metrics: dict[str, float]) -> None:
        assert self.loop is not None
        self.loop.stop_requested = iteration == self.stop_after

    def discriminator_warmup(self, update: int, total: int, metrics: dict[str, float]) -> None: ...

    def message(self, text: str) -> None: ...


def local_roles(config: Config, data: Data, warmups: Warmups) -> LocalRoles:
    return LocalRoles.build(
        warmups.generator,
        warmups.discriminator,
        config,
        max_tokens=data.task.max_tokens,
        pad_token_id=data.tokenizer.pad_token_id,
        base_folder=warmups.base,
    )


def run(
    config: Config,
    data: Data,
    cache: Path,
    roles,
    folder: Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
) -> Outcome:
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", keep=3)
    path, state, _ = checkpoints.newest_usable() if resume else (None, {"iteration": 0}, [])
    trackers = open_trackers(config, folder, start=state["iteration"])
    evaluator = prepare_evaluator(config, data, cache)
    watcher = Watcher(stop_after)
    loop = AdversarialLoop(config, roles, data.task, data.tokenizer, evaluator, trackers, checkpoints, watcher)
    watcher.loop = loop
    if path is not None:
        loop.resume(path, state)
    outcome = loop.run()
    trackers.close()
    return outcome
