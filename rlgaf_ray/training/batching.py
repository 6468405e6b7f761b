"""Which rows of a batch pass through the network together, and on which rank.

By default so many sequences in the batch's own order, padded to the batch's longest; the discriminator's updates put
sequences of like length together (``by_length``). With a budget of tokens,
sequences of like length stand together, padded to the longest of them. Of several ranks each gets its share by tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rlgaf_ray.config.learner import LearnerSection
from rlgaf_ray.objectives.policy import LossAverage
from rlgaf_ray.training.distributed import ALONE, Group
from rlgaf_ray.types import SequenceBatch

Rows = list[int]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows of a batch, and their part in the batch's average."""

    rows: Tensor  # int64 [b]
    width: int  # columns that hold a token of these rows
    share: float  # of the whole batch's average; 0 for a row that only keeps the ranks in step
    token_share: float  # of its response tokens

    def of(self, tensor: Tensor) -> Tensor:
        """[B, T] -> [b, width]."""
        return tensor[self.rows, : self.width]

    def sequences(self, batch: SequenceBatch) -> SequenceBatch:
        return SequenceBatch(self.of(batch.token_ids), self.of(batch.attention_mask), self.of(batch.response_mask))


@dataclass(frozen=True, slots=True)
class Batching:
    size: int  # sequences of a forward pass
    tokens: int | None = None  # in place of it: tokens of a forward pass, padding included
    group: Group = ALONE

    @classmethod
    def configured(cls, settings: LearnerSection, group: Group) -> Batching:
        return cls(settings.micro_batch_size, settings.micro_batch_tokens, group)

    @property
    def without_gradients(self) -> Batching:
        """A pass that keeps nothing for a backward one takes what three passes of an update do."""
        return replace(self, size=3 * self.size, tokens=None if self.tokens is None else 3 * self.tokens)

    def plan(self, lengths: Sequence[int], *, per_row: int = 1) -> list[Rows]:
        """This rank's rows, a list for each forward pass; as many lists on every rank, some of them empty.

        ``per_row``: sequences that a row stands for; ``lengths``: of the longest of them.
        """
        shares = deal(lengths, self.group.size)
        plans = [self._split(share, lengths, per_row) for share in shares]
        passes = max(len(plan) for plan in plans)
        own = plans[self.group.rank]
        return own + [[]] * (passes - len(own))

    def by_length(self, lengths: Sequence[int], *, per_row: int = 1) -> list[Rows]:
        """As ``plan``, the longest first, so that little is padding; rows of one length keep their order."""
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        plan = self.plan([lengths[row] for row in order], per_row=per_row)
        return [[order[place] for place in places] for places in plan]

    def _split(self, rows: Rows, lengths: Sequence[int], per_row: int) -> list[Rows]:
        if self.tokens is None:
            return [rows[start : start + self.size] for start in range(0, len(rows), self.size)]
        plan: list[Rows] = []
        for row in sorted(rows, key=lambda row: -lengths[row]):
            # The first of a pass is its longest.
            if plan and (len(plan[-1]) + 1) * per_row * lengths[plan[-1][0]] <= self.tokens:
                plan[-1].append(row)
            else:
                plan.append([row])
        return plan

    def micro_batches(
        self, batch: SequenceBatch, *, average: LossAverage, among: Tensor | None = None
    ) -> Iterator[MicroBatch]:
        """This rank's part of the batch, or of the rows ``among`` it, whose shares sum to one over the ranks."""
        mask = batch.response_mask
        chosen = torch.arange(len(mask), device=mask.device) if among is None else among
        num_tokens = mask[chosen].sum(1).tolist()
        num_sequences = sum(count > 0 for count in num_tokens)  # an average does not count those without tokens
        lengths = batch.attention_mask[chosen].sum(1).tolist()
        for rows in self.plan(lengths):
            index = torch.tensor(rows or [0], device=mask.device)
            width = mask.shape[1] if self.tokens is None else max(lengths[row] for row in index.tolist())
            token_share = sum(num_tokens[row] for row in rows) / sum(num_tokens)
            share = token_share if average == "token" else sum(num_tokens[row] > 0 for row in rows) / num_sequences
            yield MicroBatch(chosen[index], width, share, token_share)


def shuffled_minibatches(
    num_rows: int, *, epochs: int, minibatches: int, seed: Sequence[int], device: torch.device
) -> Iterator[Tensor]:
    """Rows of each step, int64 [b]: in every epoch each row once, in an order that depends on ``seed`` alone."""
    generator = np.random.default_rng(seed)
    for _ in range(epochs):
        yield from torch.from_numpy(generator.permutation(num_rows)).to(device).tensor_split(minibatches)


def deal(lengths: Sequence[int], num_ranks: int) -> list[Rows]:
    """Rows for each rank, in the batch's order: the longest first to the rank that has the fewest tokens so far."""
    if num_ranks == 1:
        return [list(range(len(lengths)))]
    hands: list[Rows] = [[] for _ in range(num_ranks)]
    loads = [(0, 0)] * num_ranks  # tokens, rows
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        rank = loads.index(min(loads))
        hands[rank].append(row)
        loads[rank] = (loads[rank][0] + lengths[row], loads[rank][1] + 1)
    return [sorted(hand) for hand in hands]
