"""Runs in one process, without Ray, whose discriminator is not a network with a scalar head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlgaf_ray.actors.warmup import prepare_warmups
from rlgaf_ray.config.discriminator import BatchNeeds
from rlgaf_ray.loop.local import LocalRoles
from rlgaf_ray.run.preparation import Prepared, prepare_data
from rlgaf_ray.testing import FakeDiscriminator
from rlgaf_ray.types import Demonstration, Metrics, Rollout
from tests.integration.local_run import run

SEQUENCE = "generator.reinforce.credit=sequence"
LOCAL = ["rollout.engine=transformers", "learner.precision=float32", SEQUENCE, "run.iterations=4", "checkpoint.every=2"]
GENERATIVE = ["discriminator.architecture=generative", "discriminator.held_out=20", "discriminator.frozen_layers=1"]


@pytest.fixture
def prepare(small_config, cache: Path):
    def prepared(*more: str) -> Prepared:
        torch.set_num_threads(1)
        config = small_config(*LOCAL, *more)
        data = prepare_data(config, cache)
        report = lambda name, progress: None  # noqa: E731
        warmups = prepare_warmups(config, data.task, data.tokenizer, cache, report, with_ray=False)
        return Prepared(config, data, warmups)

    return prepared


@pytest.mark.slow
def test_a_generative_critic_trains_and_a_resumed_run_equals_it(prepare, rows_of, tmp_path: Path) -> None:
    prepared = prepare(*GENERATIVE)
    run(prepared, tmp_path / "whole")
    run(prepared, tmp_path / "cut", stop_after=2)
    run(prepared, tmp_path / "cut", resume=True)
    rows = rows_of(tmp_path / "whole")
    assert rows == rows_of(tmp_path / "cut")
    assert all(0 < rows[evaluated]["discriminator/held_out_auc"] < 1 for evaluated in (0, 4))
    assert len({row["discriminator/loss"] for row in rows[1:]}) == 4


class Paired(FakeDiscriminator):
    """Asks for pairs, and for two demonstrations under other prompts beside each."""

    needs = BatchNeeds(pairs=True, other_prompts=2)

    def update(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration] = ()
    ) -> Metrics:
        assert all(np.array_equal(one.prompt_ids, other.prompt_ids) for one, other in zip(real, fake, strict=True))
        assert len(contrast) == 2 * len(real)
        return super().update(real, fake, contrast)


def test_any_discriminator_can_take_the_networks_place(prepare, rows_of, tmp_path: Path) -> None:
    """It gets the rows that it asks for, whatever the config's loss would read."""
    prepared = prepare()
    config, data, warmups = prepared.config, prepared.data, prepared.warmups
    build: Any = partial(LocalRoles.build, max_tokens=data.task.max_tokens, pad_token_id=data.tokenizer.pad_token_id)
    roles = build(warmups.generator, warmups.discriminator, config, base_folder=warmups.base, new_discriminator=Paired)
    run(prepared, tmp_path / "paired", roles)
    rows = rows_of(tmp_path / "paired")
    assert roles.discriminator.version == config.discriminator_warmup_updates + 4  # one an iteration
    assert [row["reward/deviation"] for row in rows[1:]] == [0.0] * 4  # continuations of a review have one length
