"""Low-rank adapters: the keys of ``model.lora``."""

from __future__ import annotations

from pydantic import Field

from rlgaf_ray.config.section import NonNegative, Rate, Section


class LoraSettings(Section):
    """LoRA (Hu et al. 2021, arXiv 2106.09685) on generator and discriminator: W + alpha / rank * B A, W frozen.

    PPO's critic is no part of it: it stays a whole network of its own.
    """

    rank: NonNegative = Field(0, description="of the adapters of both networks; 0: all weights are trained")
    alpha: Rate = Field(16.0, description="an adapter counts alpha / rank times")
    target_modules: list[str] | None = Field(
        None, description="names of the layers that get one; null: every linear layer of the blocks"
    )
