"""Split a batch into micro-batches and distribute them across ranks.

By default a micro-batch has a fixed number of sequences in batch order, padded to the longest of the batch.
Discriminator updates group sequences of similar length (``by_length``). With a token budget, sequences of similar
length are grouped and padded to the longest in the group. Ranks get balanced numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rlgaf_ray.config.learner import LearnerSection
from rlgaf_ray.objectives.policy import LossAverage
from rlgaf_ray.training.distributed import SINGLE_PROCESS, Group
from rlgaf_ray.types import SequenceBatch

Rows = list[int]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows of a batch and their weight in the batch average."""

    rows: Tensor  # int64 [b]
    width: int  # columns used by these rows
    share: float  # weight in the batch average; 0 for a dummy row that keeps the ranks' forward passes in step
    token_share: float  # fraction of the batch's response tokens

    def of(self, tensor: Tensor) -> Tensor:
        """Select rows and columns: [B, T] -> [b, width]."""
        return tensor[self.rows, : self.width]

    def sequences(self, batch: SequenceBatch) -> SequenceBatch:
        """Select this micro-batch's sequences."""
        return SequenceBatch(self.of(batch.token_ids), self.of(batch.attention_mask), self.of(batch.response_mask))


@dataclass(frozen=True, slots=True)
class Batching:
    """Plans forward passes by number of sequences or by a token budget."""

    size: int  # sequences per forward pass
    tokens: int | None = None  # overrides size: tokens per forward pass, padding included
    group: Group = SINGLE_PROCESS

    @classmethod
    def configured(cls, settings: LearnerSection, group: Group) -> Batching:
        return cls(settings.micro_batch_size, settings.micro_batch_tokens, group)

    @property
    def without_gradients(self) -> Batching:
        """Return a batching with three times the size, for forward passes that keep no activations."""
        return replace(self, size=3 * self.size, tokens=None if self.tokens is None else 3 * self.tokens)

    def plan(self, lengths: Sequence[int], *, sequences_per_row: int = 1) -> list[Rows]:
        """Return this rank's rows per forward pass. All ranks get the same number of passes, some of them empty.

        ``sequences_per_row``: 2 for rows that are pairs; ``lengths``: of the longest sequence of each row.
        """
        shares = balanced_shares(lengths, self.group.size)
        plans = [self._split(share, lengths, sequences_per_row) for share in shares]
        passes = max(len(plan) for plan in plans)
        own = plans[self.group.rank]
        return own + [[]] * (passes - len(own))

    def by_length(self, lengths: Sequence[int], *, sequences_per_row: int = 1) -> list[Rows]:
        """Plan like ``plan`` with rows sorted by length (stable, longest first) to minimise padding."""
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        plan = self.plan([lengths[row] for row in order], sequences_per_row=sequences_per_row)
        return [[order[index] for index in indices] for indices in plan]

    def _split(self, rows: Rows, lengths: Sequence[int], sequences_per_row: int) -> list[Rows]:
        if self.tokens is None:
            return [rows[start : start + self.size] for start in range(0, len(rows), self.size)]
        plan: list[Rows] = []
        for row in sorted(rows, key=lambda row: -lengths[row]):
            # The first row of a pass is its longest.
            if plan and (len(plan[-1]) + 1) * sequences_per_row * lengths[plan[-1][0]] <= self.tokens:
                plan[-1].append(row)
            else:
                plan.append([row])
        return plan

    def micro_batches(
        self, batch: SequenceBatch, *, average: LossAverage, among: Tensor | None = None
    ) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of the batch, or of its rows ``among``; shares sum to one over all ranks."""
        mask = batch.response_mask
        chosen = torch.arange(len(mask), device=mask.device) if among is None else among
        num_tokens = mask[chosen].sum(1).tolist()
        num_sequences = sum(count > 0 for count in num_tokens)  # averages ignore empty responses
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
    """Yield the rows of each step, int64 [b]: every row once per epoch, shuffled by ``seed``."""
    generator = np.random.default_rng(seed)
    for _ in range(epochs):
        yield from torch.from_numpy(generator.permutation(num_rows)).to(device).tensor_split(minibatches)


def balanced_shares(lengths: Sequence[int], num_ranks: int) -> list[Rows]:
    """Assign rows to ranks, longest first to the rank with the fewest tokens; each share is in batch order."""
    if num_ranks == 1:
        return [list(range(len(lengths)))]
    shares: list[Rows] = [[] for _ in range(num_ranks)]
    loads = [(0, 0)] * num_ranks  # tokens, rows
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        rank = loads.index(min(loads))
        shares[rank].append(row)
        loads[rank] = (loads[rank][0] + lengths[row], loads[rank][1] + 1)
    return [sorted(share) for share in shares]
