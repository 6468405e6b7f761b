"""Collate prompts and responses of different lengths into padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

from rlgaf_ray.data.lengths import WHOLE, View
from rlgaf_ray.types import Demonstration, Rollout, ScoredRollout, SequenceBatch, TextBlocks, TrainBatch

T = TypeVar("T")


def num_tokens(item: Demonstration | Rollout) -> int:
    """Return the number of tokens of prompt and response together."""
    return len(item.prompt_ids) + len(item.response_ids)


def collate_sequences(items: Sequence[Demonstration | Rollout], pad_token_id: int) -> SequenceBatch:
    """Concatenate each prompt with its response and pad on the right to the longest row: [B, T]."""
    present, response = _masks(items)
    token_ids = np.full(present.shape, pad_token_id, np.int64)
    # Boolean assignment fills row by row, in the order of the concatenation.
    token_ids[present] = np.concatenate([ids for item in items for ids in (item.prompt_ids, item.response_ids)])
    return SequenceBatch(
        token_ids=torch.from_numpy(token_ids),
        attention_mask=torch.from_numpy(present.astype(np.int64)),
        response_mask=torch.from_numpy(response),
    )


def collate(scored: Sequence[ScoredRollout], pad_token_id: int, group_size: int, *, view: View = WHOLE) -> TrainBatch:
    """Collate scored rollouts into a training batch: [B, T], B a multiple of ``group_size``.

    The samples of one prompt must be adjacent. ``view``: the part of each response that the discriminator read.
    """
    rollouts = [item.rollout for item in scored]
    prompt_ids = np.array([rollout.prompt_id for rollout in rollouts])
    assert len(rollouts) % group_size == 0, f"{len(rollouts)} rollouts are not whole groups of {group_size}"
    groups = prompt_ids.reshape(-1, group_size)
    assert (groups == groups[:, :1]).all(), "the samples of one prompt must be adjacent"
    assert all(len(rollout.behaviour_logprobs) == len(rollout.response_ids) for rollout in rollouts), (
        "one behaviour log-prob per response token"
    )
    _, response = _masks(rollouts)

    def padded(values: list[np.ndarray]) -> torch.Tensor:
        rows = np.zeros(response.shape, np.float32)
        rows[response] = np.concatenate(values)
        return torch.from_numpy(rows)

    token_scores = _given("token_scores", [item.token_scores for item in scored])
    action_values = _given("action_values", [item.action_values for item in scored])
    rewards = _given("rewards", [item.reward for item in scored])

    return TrainBatch(
        sequences=collate_sequences(rollouts, pad_token_id),
        behaviour_logprobs=padded([rollout.behaviour_logprobs for rollout in rollouts]),
        scores=torch.tensor([item.score for item in scored], dtype=torch.float32),
        group_size=group_size,
        token_scores=None if token_scores is None else padded(token_scores),
        action_values=None if action_values is None else padded(action_values),
        num_read=torch.tensor([len(item.response_ids) for item in view.read(rollouts)]),
        rewards=None if rewards is None else torch.tensor(rewards, dtype=torch.float32),
    )


def _given(name: str, values: Sequence[T | None]) -> list[T] | None:
    given = [value for value in values if value is not None]
    assert len(given) in (0, len(values)), f"all rollouts of a batch have {name}, or none has"
    return given or None


def demonstration_blocks(items: Sequence[Demonstration]) -> TextBlocks:
    """Pad demonstrations with zeros to rows of equal length, [N, longest]; only response tokens have loss."""
    present, response = _masks(items)
    token_ids = np.zeros(present.shape, np.int32)
    token_ids[present] = np.concatenate([ids for item in items for ids in (item.prompt_ids, item.response_ids)])
    return TextBlocks(token_ids, response)


def _masks(items: Sequence[Demonstration | Rollout]) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks of all tokens and of response tokens: bool [B, T] each."""
    assert items, "nothing to collate"
    num_prompt = np.array([len(item.prompt_ids) for item in items])[:, None]
    num_tokens = num_prompt + np.array([len(item.response_ids) for item in items])[:, None]
    positions = np.arange(num_tokens.max())[None, :]
    return positions < num_tokens, (positions >= num_prompt) & (positions < num_tokens)
