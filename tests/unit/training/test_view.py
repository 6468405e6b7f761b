"""The discriminator's view of a response (``discriminator.view``) in scoring and training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rlgaf_ray.config import load_config
from rlgaf_ray.data.collate import collate
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import Demonstration, Rollout, ScoredRollout

END = 0
LAST_TWO = "discriminator={view: last_tokens, view_tokens: 2}"
WITHOUT_END = "discriminator.view=without_end"
SMALL = ["learner.precision=float32", "generator.reinforce.credit=sequence", "rollout.stop_at_end_of_text=true"]


@pytest.fixture
def build(folder: Path):
    def make(*overrides: str) -> NeuralDiscriminator:
        return NeuralDiscriminator(folder, load_config(None, [*SMALL, *overrides]), pad_token_id=0)

    return make


def rollout(prompt: list[int], response: list[int]) -> Rollout:
    behaviour = np.zeros(len(response), np.float32)
    return Rollout(0, np.array(prompt, np.int32), np.array(response, np.int32), behaviour, "stop", 0)


def demonstration(response: list[int]) -> Demonstration:
    return Demonstration(np.array([3, 4], np.int32), np.array(response, np.int32))


RAGGED = [rollout([3, 4], [5, 6, 7, END]), rollout([9], [8]), rollout([3], [5, END]), rollout([2, 3], [9, 8, 7, 6, 5])]


@pytest.mark.parametrize(
    ("view", "spans"),
    [
        ([LAST_TWO], [(2, 4), (0, 1), (0, 2), (3, 5)]),
        ([WITHOUT_END], [(0, 3), (0, 1), (0, 1), (0, 5)]),
        ([LAST_TWO, "discriminator.match_lengths=true"], [(1, 3), (0, 1), (0, 1), (3, 5)]),
    ],
    ids=["last_tokens", "without_end", "last_tokens-matched"],
)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_score_covers_the_tokens_in_the_view(build, folder: Path, view: list[str], spans, pooling: str) -> None:
    """Other tokens contribute zero; the prompt is always read. Micro-batches of two."""
    settings = [*view, f"discriminator.pooling={pooling}", "learner.micro_batch_size=2"]
    discriminator = build(*settings)
    scored = discriminator.score(RAGGED)
    for item, (start, stop) in zip(scored, spans, strict=True):
        part = Demonstration(item.rollout.prompt_ids, item.rollout.response_ids[start:stop])
        with torch.no_grad():
            expected = discriminator.logits([part]).item()
            tokens = discriminator.model.token_logits(discriminator.collate([part]))[0, len(part.prompt_ids) :]
        assert item.score == pytest.approx(expected, abs=1e-5)
        whole = np.zeros(len(item.rollout.response_ids))
        whole[start:stop] = tokens.numpy()
        assert item.token_scores is not None
        np.testing.assert_allclose(item.token_scores, whole, atol=1e-6)
        assert np.count_nonzero(item.token_scores) == (stop - start if pooling == "mean" else 1)
    other_prompt = rollout([11, 12], [5, 6, 7, END])
    assert discriminator.score([other_prompt])[0].score != pytest.approx(scored[0].score, abs=1e-6)
    learner = Learner(folder, load_config(None, [*SMALL, *settings]), pad_token_id=0)
    num_read = collate(scored, 0, 4, view=learner.view).num_read
    assert num_read is not None and num_read.tolist() == [stop - start for start, stop in spans]


@pytest.mark.parametrize(
    ("view", "alike", "other"),
    [
        (LAST_TWO, [[9, 9, 5, 6], [8, 5, 6], [5, 6]], [5, 6, 9]),
        (WITHOUT_END, [[5, 6, END], [5, 6]], [5, 6, 9]),
    ],
)
def test_an_update_depends_on_the_tokens_in_the_view_only(build, view: str, alike: list[list[int]], other) -> None:
    """Responses that differ only in unread tokens give bit-identical updates; others do not."""
    contrast = [demonstration(response) for response in ([7, 7, 8, END], [7, 8])]

    def update(real: list[int], fake: list[int]) -> tuple[dict[str, float], torch.Tensor]:
        discriminator = build(view, "discriminator.learning_rate=1e-2", "discriminator.contrast_weight=1.3")
        row = [demonstration(real)] * 2, [rollout([3, 4], fake)] * 2
        metrics = discriminator.update(*row, contrast)
        return metrics, discriminator.model.network.score.weight.detach().clone()

    metrics, weight = update(alike[0], other)
    for response in alike[1:]:
        again, moved = update(response, other)
        assert again == metrics and torch.equal(moved, weight)
    assert update(other, alike[0])[0] != metrics


def test_matched_last_tokens_are_the_last_of_both(build) -> None:
    """At most three tokens are read and real text has two, so only the rollout's last two matter."""
    settings = ["discriminator={view: last_tokens, view_tokens: 3, match_lengths: true, contrast_weight: 0}"]
    found = [
        build(*settings).update([demonstration([5, 6, END])], [rollout([3, 4], fake)])
        for fake in ([9, 9, 7, 8], [10, 7, 8, END], [7, 8], [9, 9, 8, 7])
    ]
    assert found[0] == found[1] == found[2] != found[3]
    assert found[0]["discriminator/response_tokens"] == 2


def test_token_credit_goes_to_the_tokens_in_the_view(folder: Path) -> None:
    """Two responses of three tokens, the last two read, with scores (3, 1) and (1, 1): returns 4, 4, 1 and 2, 2, 1."""
    items = [
        ScoredRollout(rollout([3], [5, 6, 7]), sum(parts), 0, sum(parts), np.array(parts, np.float32))
        for parts in ([0.0, 3.0, 1.0], [0.0, 1.0, 1.0])
    ]
    sizes = ["rollout.batch_size=2", "rollout.samples_per_prompt=2", "generator.reinforce.advantage_scale=none"]
    settings = load_config(None, ["learner.precision=float32", LAST_TWO, *sizes])
    metrics = Learner(folder, settings, pad_token_id=0).update(items, iteration=0)
    # minus the other's at each position: 2, 2, 0 and -2, -2, 0
    assert metrics["generator/advantage_deviation"] == pytest.approx((16 / 6) ** 0.5)
