"""Past rollouts that the discriminator learns from again, so that it does not forget what the generator once did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from rlgaf_ray.errors import UserError
from rlgaf_ray.training.randomness import update_generator
from rlgaf_ray.types import Demonstration, Rollout


class Past(NamedTuple):
    generated: Demonstration
    real: Demonstration | None  # of the same prompt, in a buffer of pairs


class ReplayBuffer:
    """At most ``size`` past fakes; each update takes ``share`` of its own from them (Shrivastava et al. 2017, arXiv
    1612.07828, section 2.3, who take half).

    Until it is full new rollouts are added, then they take the place of entries drawn by lot. Draws depend on the seed
    and the number of the update. Several updates on one iteration's rollouts add them once.
    ``paired``: a past rollout brings the demonstration of its prompt along, for a loss that compares the two.
    """

    def __init__(self, *, share: float, size: int, seed: int, paired: bool = False) -> None:
        self.share = share
        self.size = size
        self.seed = seed
        self.paired = paired
        self.items: list[Past] = []
        self.newest_version = -1  # policy that sampled the rollouts added last

    def exchange(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], update: int
    ) -> tuple[Sequence[Demonstration], list[Demonstration | Rollout], int]:
        """The update's real rows and its fakes, some of these replaced by past ones, and the number of those.

        Then the new ones are added. With pairs row i of both answers one prompt, before as after; else the real rows
        are returned as they are.
        """
        generator = update_generator(self.seed, update)
        num_past = min(round(self.share * len(fake)), len(self.items))
        kept = np.sort(generator.choice(len(fake), len(fake) - num_past, replace=False))
        past = [self.items[row] for row in generator.permutation(len(self.items))[:num_past]]
        mixed: list[Demonstration | Rollout] = [fake[row] for row in kept]
        mixed += [item.generated for item in past]
        pairs = zip(fake, real, strict=True) if self.paired else ((item, None) for item in fake)
        if fake[0].policy_version != self.newest_version:
            self.newest_version = fake[0].policy_version
            new = [Past(Demonstration(item.prompt_ids, item.response_ids), own) for item, own in pairs]
            self._add(new, generator)
        if self.paired:
            real = [real[row] for row in kept] + [item.real for item in past if item.real is not None]
        return real, mixed, num_past

    def _add(self, new: Sequence[Past], generator: np.random.Generator) -> None:
        room = self.size - len(self.items)
        self.items += new[:room]
        rest = new[room : room + self.size]
        for slot, item in zip(generator.choice(self.size, len(rest), replace=False), rest, strict=True):
            self.items[slot] = item

    def _sides(self) -> dict[str, list[np.ndarray]]:
        """Token ids of all entries, by their names in the file."""
        sides = {
            "prompt_ids": [item.generated.prompt_ids for item in self.items],
            "response_ids": [item.generated.response_ids for item in self.items],
        }
        if self.paired:
            sides["real_ids"] = [item.real.response_ids for item in self.items if item.real is not None]
        return sides

    def save(self, path: Path) -> None:
        """One safetensors file: all tokens end to end, and the lengths."""
        nothing = np.zeros(0, np.int32)
        tensors = {"newest_version": np.array([self.newest_version])}
        for name, rows in self._sides().items():
            tensors[name] = np.concatenate([nothing, *rows])
            tensors[f"{name}.lengths"] = np.array([len(row) for row in rows], np.int64)
        save_file(tensors, path)

    def load(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(
                f"{path} does not exist: discriminator.replay_share cannot be switched on in the middle of a run"
            )
        tensors = load_file(path)
        if self.paired and "real_ids" not in tensors:
            raise UserError(
                f"{path} holds rollouts without the demonstrations of their prompts: with discriminator.replay_share, "
                "discriminator.loss cannot be changed to bradley_terry in the middle of a run"
            )
        sides = [
            np.split(tensors[name], np.cumsum(tensors[f"{name}.lengths"])[:-1])
            for name in ("prompt_ids", "response_ids", "real_ids")[: 3 if self.paired else 2]
            if len(tensors[f"{name}.lengths"])
        ]
        self.items = [
            Past(Demonstration(prompt, generated), Demonstration(prompt, *real) if real else None)
            for prompt, generated, *real in zip(*sides, strict=True)
        ]
        self.newest_version = int(tensors["newest_version"][0])
