"""The tables that a discriminator is chosen from."""

from __future__ import annotations

from typing import get_args

from rlgaf_ray.config.discriminator import (
    ARCHITECTURE_TRAITS,
    LOSS_TRAITS,
    DiscriminatorArchitecture,
    DiscriminatorLoss,
)
from rlgaf_ray.objectives.discriminator import LOSSES
from rlgaf_ray.training.architectures import DISCRIMINATORS


def test_a_config_can_name_what_the_tables_hold() -> None:
    assert set(get_args(DiscriminatorLoss)) == LOSSES.keys() >= LOSS_TRAITS.keys()
    assert set(get_args(DiscriminatorArchitecture)) == DISCRIMINATORS.keys() == ARCHITECTURE_TRAITS.keys()
