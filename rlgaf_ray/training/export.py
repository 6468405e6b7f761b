"""Export full models from a checkpoint that has only LoRA adapters."""

from __future__ import annotations

from pathlib import Path

import torch

from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.handover import loads_from_storage
from rlgaf_ray.models.generator import load_generator
from rlgaf_ray.models.lora import add_adapters, export_network, load_adapters
from rlgaf_ray.training.architectures import DISCRIMINATORS


@loads_from_storage
def export_merged(
    config: Config,
    checkpoint: Path,
    target: Path,
    *,
    generator: Path,
    discriminator: Path,
    pad_token_id: int,
) -> None:
    """Merge the checkpoint's adapters into the base weights and write ``target/generator`` and ``/discriminator``.

    Args:
        generator: folder of the frozen base weights that the run started from; same for ``discriminator``.
    """
    network = load_generator(generator, trust_remote_code=config.model.trust_remote_code)
    add_adapters(network, config.model.lora, seed=config.run.seed)
    load_adapters(network, checkpoint / "learner" / "generator")
    export_network(network, target / "generator")
    load = DISCRIMINATORS[config.discriminator.architecture].load
    judge = load(discriminator, config, pad_token_id=pad_token_id, device=torch.device("cpu"))
    load_adapters(judge.network, checkpoint / "discriminator")
    judge.export(target / "discriminator")
