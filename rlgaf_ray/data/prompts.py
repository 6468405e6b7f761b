"""Seeded, resumable, infinite streams of prompts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rlgaf_ray.errors import UserError


class PromptStream:
    """Row numbers of ``num_items`` prompts, each once per epoch, reshuffled every epoch.

    The order depends only on (seed, epoch), so the state is four integers.
    """

    def __init__(self, num_items: int, seed: int) -> None:
        assert num_items > 0, "a stream needs prompts"
        self._num_items = num_items
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._order = self._permutation()

    def next(self, count: int) -> np.ndarray:
        """Return the next ``count`` row numbers, across epochs if necessary: int64 [count]."""
        pieces = []
        while count > 0:
            if self._position == self._num_items:
                self._epoch += 1
                self._position = 0
                self._order = self._permutation()
            piece = self._order[self._position : self._position + count]
            self._position += len(piece)
            count -= len(piece)
            pieces.append(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def state_dict(self) -> dict[str, int]:
        return {
            "num_items": self._num_items,
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the position. Raises ``UserError`` if the state is damaged or from other data or another seed."""
        mine = self.state_dict()
        if set(state) != set(mine) or not all(type(value) is int for value in state.values()):
            raise UserError(f"damaged prompt stream state {dict(state)}: expected integers {', '.join(mine)}")
        for name in ("num_items", "seed"):
            if state[name] != mine[name]:
                raise UserError(
                    f"the prompt stream was saved with {name}={state[name]}, this run has {mine[name]}: "
                    "resume with the data, splits, discriminator.held_out and run.seed of the saved run"
                )
        if state["epoch"] < 0 or not 0 <= state["position"] <= self._num_items:
            raise UserError(f"damaged prompt stream state {dict(state)}: epoch or position is out of range")
        self._epoch = state["epoch"]
        self._position = state["position"]
        self._order = self._permutation()

    def _permutation(self) -> np.ndarray:
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, self._epoch])))
        return generator.permutation(self._num_items)


def num_free(share: float, count: int) -> int:
    """Return the number of free prompts among ``count`` prompts."""
    return round(share * count)


class MixedPromptStream:
    """Mixes prompts of demonstrations with a fixed share of free prompts per batch.

    Demonstrations have the row numbers below ``num_items``, free prompts those from ``num_items`` on. With a share of 0
    rows and state equal those of a ``PromptStream`` with the same items and seed.
    """

    def __init__(self, num_items: int, num_free: int, *, share: float, seed: int, free_seed: int) -> None:
        self._num_items = num_items
        self._share = share
        self._own = PromptStream(num_items, seed)
        self._free = PromptStream(num_free, free_seed) if share > 0 else None

    def num_free(self, count: int) -> int:
        """Return the number of free prompts in a batch of ``count``."""
        return num_free(self._share, count)

    def own(self, count: int) -> np.ndarray:
        """Return rows of demonstrations only: int64 [count]."""
        return self._own.next(count)

    def next(self, count: int) -> np.ndarray:
        """Return the next rows, free prompts last: int64 [count]."""
        num_free = self.num_free(count)
        rows = self._own.next(count - num_free)
        return rows if self._free is None else np.concatenate([rows, self._num_items + self._free.next(num_free)])

    def state_dict(self) -> dict[str, int]:
        free = {} if self._free is None else self._free.state_dict()
        return self._own.state_dict() | {f"free_{name}": value for name, value in free.items()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the position. Raises ``UserError`` like ``PromptStream``, or if only one run has free prompts."""
        free = {name.removeprefix("free_"): value for name, value in state.items() if name.startswith("free_")}
        if bool(free) != (self._free is not None):
            raise UserError(
                f"the run was saved {'with' if free else 'without'} free prompts: resume with its rollout.free_prompts"
            )
        self._own.load_state_dict({name: value for name, value in state.items() if not name.startswith("free_")})
        if self._free is not None:
            self._free.load_state_dict(free)
