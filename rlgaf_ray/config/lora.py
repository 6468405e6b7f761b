"""Low-rank adapters (``model.lora``)."""

from __future__ import annotations

from pydantic import Field

from rlgaf_ray.config.section import NonNegative, Rate, Section


class LoraSettings(Section):
    """LoRA (Hu et al. 2021, arXiv 2106.09685) on generator and discriminator: W + alpha / rank * B A, W frozen.

    PPO's critic has no adapters: it is a separate, fully trained network.
    """

    rank: NonNegative = Field(
        0, description="rank of the adapters of generator and discriminator, e.g. 16; 0: train all weights"
    )
    alpha: Rate = Field(16.0, description="scale of the adapters: their output is multiplied by alpha / rank")
    target_modules: list[str] | None = Field(
        None, description="names of the layers with adapters; null: every linear layer of the blocks"
    )
