"""The reward: what the generator is paid for a response and for each of its tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlgaf_ray.config.section import NonNegativeRate, Rate, Section


class RewardSection(Section):
    kind: Literal["logit", "probability_centered", "log_probability", "zero"] = Field(
        "logit", description="zero: the control, which learns from everything but the discriminator"
    )
    whiten: bool = Field(False, description="to mean 0 and deviation 1 by running statistics over iterations")
    clip: Rate | None = Field(None, description="to plus and minus this, after whitening where that is on; null: off")
    base_logprob: NonNegativeRate = Field(
        0.0,
        description="coefficient of log p of the model before SFT, added to each sampled token's reward, neither "
        "whitened nor clipped; 0: off",
    )
