"""A rollout engine as an actor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rlgaf_ray.actors.recovery import Process, own_process
from rlgaf_ray.config.schema import Config
from rlgaf_ray.engines.base import RolloutEngine
from rlgaf_ray.engines.build import build_engine
from rlgaf_ray.types import Metrics, Prompt, Rollout, SamplingSettings, WeightUpdate
from rlgaf_ray.weights.choice import Backend, Site, current_site
from rlgaf_ray.weights.manifest import DeviceUpdate
from rlgaf_ray.weights.nccl import Rendezvous


class RolloutWorker:
    """A rollout engine in its own actor process; ``start`` builds it for one weight transfer.

    With ``rollout.sleep_level`` the engine holds GPU memory only from a weight push or ``generate`` until ``sleep``.
    """

    def __init__(self, folder: str, config: Config, *, max_tokens: int, device: str, threads: int) -> None:
        self.build = partial(build_engine, folder, config, max_tokens=max_tokens, device=device, threads=threads)
        self.device = device
        self.sleeps = config.rollout.sleep_level > 0

    def site(self) -> Site:
        return current_site(self.device)

    def start(self, transfer: Backend) -> Process:
        self.engine: RolloutEngine = self.build(transfer=transfer)
        return own_process()

    def join_transfer(self, rendezvous: Rendezvous, index: int) -> None:
        self.engine.join_transfer(rendezvous, index)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        if self.sleeps:
            self.engine.wake_up()
        return self.engine.generate(prompts, sampling, seeds=seeds)

    def sleep(self) -> None:
        self.engine.sleep()

    def update_weights(self, update: WeightUpdate | DeviceUpdate, *before: Metrics) -> Metrics:
        """Load an update; Ray runs this only after the load ``before``, passed as a reference."""
        return self.engine.update_weights(update)
