from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlgaf_ray.errors import UserError
from rlgaf_ray.training.replay import ReplayBuffer
from rlgaf_ray.types import Demonstration, Rollout


def rollouts(version: int, count: int = 8) -> list[Rollout]:
    """Rollouts whose tokens encode version and row."""
    return [
        Rollout(
            prompt_id=row,
            prompt_ids=np.array([version], np.int32),
            response_ids=np.array([version] * (1 + row % 3) + [row], np.int32),
            behaviour_logprobs=np.zeros(2 + row % 3, np.float32),
            finish_reason="stop",
            policy_version=version,
        )
        for row in range(count)
    ]


def versions(items: list[Demonstration | Rollout]) -> list[int]:
    return [int(item.prompt_ids[0]) for item in items]


def test_the_share_comes_from_past_rollouts() -> None:
    buffer = ReplayBuffer(share=0.25, size=100, seed=0)
    for version in range(5):
        _, mixed, num_past = buffer.exchange((), rollouts(version), update=version)
        assert len(mixed) == 8
        assert num_past == (2 if version else 0)  # the buffer is empty at first
        assert versions(mixed).count(version) == 8 - num_past
        assert all(past < version for past in versions(mixed)[8 - num_past :])
        responses = [tuple(item.prompt_ids) + tuple(item.response_ids) for item in mixed]
        assert len(set(responses)) == 8  # no duplicates
    assert len(buffer.items) == 40


def test_a_full_buffer_overwrites_random_entries() -> None:
    buffer = ReplayBuffer(share=0.5, size=20, seed=0)
    for version in range(50):
        buffer.exchange((), rollouts(version), update=version)
        assert len(buffer.items) == min(20, 8 * (version + 1))
    kept = versions([item.generated for item in buffer.items])
    assert kept.count(49) == 8  # the newest are all there
    assert len(set(kept)) > 2 and min(kept) > 30  # some older ones: an entry survives an update with probability 12/20


def test_a_buffer_smaller_than_a_batch() -> None:
    buffer = ReplayBuffer(share=0.5, size=3, seed=0)
    for version in range(3):
        *_, num_past = buffer.exchange((), rollouts(version), update=version)
        assert num_past == (3 if version else 0)
        assert versions([item.generated for item in buffer.items]) == [version] * 3


def test_rollouts_of_one_iteration_are_added_once() -> None:
    buffer = ReplayBuffer(share=0.5, size=100, seed=0)
    for update in range(3):
        buffer.exchange((), rollouts(7), update=update)
    assert len(buffer.items) == 8


def test_batches_of_one_policy_version_are_all_added() -> None:
    """As in the discriminator's warm-up, whose rollouts are all of the initial policy."""
    buffer = ReplayBuffer(share=0.5, size=100, seed=0)
    for update in range(3):
        batch = [replace(item, policy_version=0) for item in rollouts(update)]
        buffer.exchange((), batch, update=update)
    assert len(buffer.items) == 24


def test_a_loaded_buffer_continues_identically(tmp_path: Path) -> None:
    whole = ReplayBuffer(share=0.5, size=12, seed=3)
    empty = ReplayBuffer(share=0.5, size=12, seed=3)
    empty.save(tmp_path / "empty.safetensors")
    for version in range(4):
        whole.exchange((), rollouts(version), update=version)
    whole.save(tmp_path / "replay.safetensors")
    resumed = ReplayBuffer(share=0.5, size=12, seed=3)
    resumed.load(tmp_path / "replay.safetensors")
    assert versions([item.generated for item in resumed.items]) == versions([item.generated for item in whole.items])
    drawn = [
        [(item.prompt_ids.tolist(), item.response_ids.tolist()) for item in one.exchange((), rollouts(4), update=4)[1]]
        for one in (whole, resumed)
    ]
    assert drawn[0] == drawn[1]
    resumed.load(tmp_path / "empty.safetensors")
    assert (resumed.items, resumed.newest) == ([], 0)
    with pytest.raises(UserError, match="replay_share cannot be enabled in a resumed run"):
        resumed.load(tmp_path / "none.safetensors")


def test_sampling_depends_on_the_seed() -> None:
    drawn = []
    for seed in (0, 0, 1):
        buffer = ReplayBuffer(share=0.5, size=100, seed=seed)
        buffer.exchange((), rollouts(0), update=0)
        drawn.append([item.response_ids.tolist() for item in buffer.exchange((), rollouts(1), update=1)[1]])
    assert drawn[0] == drawn[1] != drawn[2]


def demonstrations_of(fake: list[Rollout]) -> list[Demonstration]:
    """Demonstrations of varying length for the rollouts' prompts, encoding version and row."""
    return [
        Demonstration(item.prompt_ids, np.array([50, item.policy_version, item.prompt_id], np.int32)) for item in fake
    ]


def test_pairs_stay_pairs_after_exchange_and_checkpoint(tmp_path: Path) -> None:
    buffers = [ReplayBuffer(share=0.25, size=12, seed=0, paired=True) for _ in range(2)]
    plain = ReplayBuffer(share=0.25, size=12, seed=0)
    for version in range(6):
        fake = rollouts(version)
        given = demonstrations_of(fake)
        for number, buffer in enumerate(buffers):
            real, mixed, num_past = buffer.exchange(given, fake, update=version)
            assert num_past == (2 if version else 0) and len(real) == len(mixed) == 8
            named = [(int(item.response_ids[1]), int(item.response_ids[2])) for item in real]
            assert named == [(int(item.prompt_ids[0]), int(item.response_ids[-1])) for item in mixed]
            assert all(np.array_equal(one.prompt_ids, other.prompt_ids) for one, other in zip(real, mixed, strict=True))
            if version == 3 and number == 1:  # continue from a saved file
                buffer.save(tmp_path / "pairs.safetensors")
                buffers[1] = ReplayBuffer(share=0.25, size=12, seed=0, paired=True)
                buffers[1].load(tmp_path / "pairs.safetensors")
        same, alone, _ = plain.exchange(given, fake, update=version)
        assert same is given and versions(alone) == versions(mixed)  # sampling does not depend on pairing
    plain.save(tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match=r"discriminator\.loss cannot be changed to a paired loss in a resumed run"):
        buffers[0].load(tmp_path / "plain.safetensors")
    plain.load(tmp_path / "pairs.safetensors")
    assert [item.real for item in plain.items] == [None] * 12
