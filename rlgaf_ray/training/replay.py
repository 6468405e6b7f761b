"""Past rollouts that the discriminator learns from again, so that it does not forget what the generator once did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from rlgaf_ray.training.randomness import update_generator
from rlgaf_ray.types import Demonstration, Rollout


class ReplayBuffer:
    """At most ``size`` past fakes; each update takes ``share`` of its own from them (Shrivastava et al. 2017, arXiv
    1612.07828, section 2.3, who take half).

    Until it is full new rollouts are added, then they take the place of entries drawn by lot. Draws depend on the seed
    and the number of the update. Several updates on one iteration's rollouts add them once.
    """

    def __init__(self, *, share: float, size: int, seed: int) -> None:
        self.share = share
        self.size = size
        self.seed = seed
        self.items: list[Demonstration] = []
        self.newest_version = -1  # policy that sampled the rollouts added last

    def exchange(self, fake: Sequence[Rollout], update: int) -> tuple[list[Demonstration | Rollout], int]:
        """The update's fakes, some of them replaced by past ones, and the number of those; then adds the new ones."""
        generator = update_generator(self.seed, update)
        num_past = min(round(self.share * len(fake)), len(self.items))
        kept = np.sort(generator.choice(len(fake), len(fake) - num_past, replace=False))
        past = generator.permutation(len(self.items))[:num_past]
        mixed: list[Demonstration | Rollout] = [fake[row] for row in kept]
        mixed += [self.items[row] for row in past]
        if fake[0].policy_version != self.newest_version:
            self.newest_version = fake[0].policy_version
            self._add([Demonstration(item.prompt_ids, item.response_ids) for item in fake], generator)
        return mixed, num_past

    def _add(self, new: Sequence[Demonstration], generator: np.random.Generator) -> None:
        room = self.size - len(self.items)
        self.items += new[:room]
        rest = new[room : room + self.size]
        for slot, item in zip(generator.choice(self.size, len(rest), replace=False), rest, strict=True):
            self.items[slot] = item

    def save(self, path: Path) -> None:
        """One safetensors file: all tokens end to end, and the lengths."""
        nothing = np.zeros(0, np.int32)
        tensors = {"newest_version": np.array([self.newest_version])}
        for name in ("prompt_ids", "response_ids"):
            rows = [getattr(item, name) for item in self.items]
            tensors[name] = np.concatenate([nothing, *rows])
            tensors[f"{name}.lengths"] = np.array([len(row) for row in rows], np.int64)
        save_file(tensors, path)

    def load(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist: discriminator.replay_share cannot be switched on in the middle of a run"
            )
        tensors = load_file(path)
        sides = [
            np.split(tensors[name], np.cumsum(tensors[f"{name}.lengths"])[:-1])
            for name in ("prompt_ids", "response_ids")
            if len(tensors[f"{name}.lengths"])
        ]
        self.items = [Demonstration(prompt, response) for prompt, response in zip(*sides, strict=True)]
        self.newest_version = int(tensors["newest_version"][0])
