"""Replay buffer of past rollouts, which keeps the discriminator from forgetting earlier generator behaviour."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from rlgaf_ray.errors import UserError
from rlgaf_ray.training.randomness import update_generator
from rlgaf_ray.types import Demonstration, Rollout


class ReplayEntry(NamedTuple):
    """A past rollout and, in a paired buffer, the demonstration of its prompt."""

    generated: Demonstration
    real: Demonstration | None


class ReplayBuffer:
    """Keeps up to ``size`` past rollouts and replaces a fraction ``share`` of each update's rollouts with them.

    Shrivastava et al. 2017 (arXiv 1612.07828, section 2.3), who replace half. New rollouts are appended until the
    buffer is full, then overwrite random entries. Sampling depends on the seed and the update number only. Several
    updates on the rollouts of one iteration add them once.
    ``paired``: store each rollout with the demonstration of its prompt, for losses that compare the two.
    """

    def __init__(self, *, share: float, size: int, seed: int, paired: bool = False) -> None:
        self.share = share
        self.size = size
        self.seed = seed
        self.paired = paired
        self.items: list[ReplayEntry] = []
        self.newest = 0  # digest of the rollouts added last; several batches may have the same policy version

    def exchange(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], update: int
    ) -> tuple[Sequence[Demonstration], list[Demonstration | Rollout], int]:
        """Return real rows, fake rows with some replaced by past rollouts, and the number of replaced rows.

        Adds the new rollouts to the buffer afterwards. In a paired buffer row i of both answers the same prompt, in the
        arguments and in the result; otherwise the real rows are returned unchanged.
        """
        generator = update_generator(self.seed, update)
        num_past = min(round(self.share * len(fake)), len(self.items))
        kept = np.sort(generator.choice(len(fake), len(fake) - num_past, replace=False))
        past = [self.items[row] for row in generator.permutation(len(self.items))[:num_past]]
        mixed: list[Demonstration | Rollout] = [fake[row] for row in kept]
        mixed += [item.generated for item in past]
        pairs = zip(fake, real, strict=True) if self.paired else ((item, None) for item in fake)
        if (digest := _digest(fake)) != self.newest:
            self.newest = digest
            new = [ReplayEntry(Demonstration(item.prompt_ids, item.response_ids), own) for item, own in pairs]
            self._add(new, generator)
        if self.paired:
            real = [real[row] for row in kept] + [item.real for item in past if item.real is not None]
        return real, mixed, num_past

    def _add(self, new: Sequence[ReplayEntry], generator: np.random.Generator) -> None:
        free = self.size - len(self.items)
        self.items += new[:free]
        rest = new[free : free + self.size]
        for slot, item in zip(generator.choice(self.size, len(rest), replace=False), rest, strict=True):
            self.items[slot] = item

    def _sides(self) -> dict[str, list[np.ndarray]]:
        """Return the token ids of all entries by their name in the file."""
        sides = {
            "prompt_ids": [item.generated.prompt_ids for item in self.items],
            "response_ids": [item.generated.response_ids for item in self.items],
        }
        if self.paired:
            sides["real_ids"] = [item.real.response_ids for item in self.items if item.real is not None]
        return sides

    def save(self, path: Path) -> None:
        """Write a safetensors file with the concatenated tokens and the lengths of all entries."""
        nothing = np.zeros(0, np.int32)
        tensors = {"newest": np.array([self.newest])}
        for name, rows in self._sides().items():
            tensors[name] = np.concatenate([nothing, *rows])
            tensors[f"{name}.lengths"] = np.array([len(row) for row in rows], np.int64)
        save_file(tensors, path)

    def load(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path} does not exist: discriminator.replay_share cannot be enabled in a resumed run")
        tensors = load_file(path)
        if self.paired and "real_ids" not in tensors:
            raise UserError(
                f"{path} has rollouts without the demonstrations of their prompts: with discriminator.replay_share, "
                "discriminator.loss cannot be changed to a paired loss in a resumed run"
            )
        sides = [
            np.split(tensors[name], np.cumsum(tensors[f"{name}.lengths"])[:-1])
            for name in ("prompt_ids", "response_ids", "real_ids")[: 3 if self.paired else 2]
            if len(tensors[f"{name}.lengths"])
        ]
        self.items = [
            ReplayEntry(Demonstration(prompt, generated), Demonstration(prompt, *real) if real else None)
            for prompt, generated, *real in zip(*sides, strict=True)
        ]
        self.newest = int(tensors["newest"][0])


def _digest(rollouts: Sequence[Rollout]) -> int:
    """Hash the token ids of a batch to 63 bits."""
    digest = hashlib.blake2b(digest_size=8)
    for item in rollouts:
        digest.update(item.prompt_ids.tobytes() + item.response_ids.tobytes())
    return int.from_bytes(digest.digest()) >> 1
