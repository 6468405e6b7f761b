"""The discriminator's two acts: scoring rollouts, and one update that tells them from demonstrations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig

from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.models.cnn import CnnConfig, CnnDiscriminator
from rlgaf_ray.models.generator import restore_weights
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.objectives.discriminator import discriminator_loss
from rlgaf_ray.training.optimizer import build_optimizer, load_optimizer, optimizer_step, save_optimizer
from rlgaf_ray.training.precision import autocast, resolve_precision
from rlgaf_ray.types import Demonstration, Metrics, Rollout, WeightUpdate
from rlgaf_ray.weights.state import to_arrays


def load_discriminator(
    folder: str | Path, config: Config, *, pad_token_id: int, device: torch.device
) -> ScalarModel | CnnDiscriminator:
    """The kind of network that the folder holds: SeqGAN's CNN, or a language model, which gets a scalar head."""
    trust_remote_code = config.model.trust_remote_code
    if isinstance(AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code), CnnConfig):
        return CnnDiscriminator.load(folder, device=device)
    return ScalarModel.load(
        folder,
        pooling=config.discriminator.pooling,
        pad_token_id=pad_token_id,
        seed=config.run.seed,
        trust_remote_code=trust_remote_code,
        device=device,
    )


class Discriminator:
    """One network, its optimiser, and the number of updates it has had (``version``)."""

    def __init__(self, folder: str | Path, config: Config, *, pad_token_id: int, device: str = "cpu") -> None:
        self.configured = self.settings = config.discriminator
        self.micro_batch_size = config.learner.micro_batch_size
        self.pad_token_id = pad_token_id
        self.device = torch.device(device)
        self.dtype = resolve_precision(config.learner.precision, self.device)
        self.model = load_discriminator(folder, config, pad_token_id=pad_token_id, device=self.device)
        self.optimizer = build_optimizer(
            self.model.parameters(),
            learning_rate=self.settings.learning_rate,
            betas=self.settings.betas,
            weight_decay=self.settings.weight_decay,
        )
        self.version = 0

    def logits(self, items: Sequence[Demonstration | Rollout]) -> torch.Tensor:
        """float32 [B] on the model's device, with the gradient of the surrounding mode."""
        starts = range(0, len(items), self.micro_batch_size)
        chunks = (items[start : start + self.micro_batch_size] for start in starts)
        with autocast(self.dtype, self.device):
            return torch.cat(
                [self.model(collate_sequences(chunk, self.pad_token_id).to(self.device)) for chunk in chunks]
            )

    @torch.no_grad()
    def score(self, rollouts: Sequence[Demonstration | Rollout]) -> tuple[list[float], int]:
        """The logit of each rollout, in order, and the version that gave them."""
        return self.logits(rollouts).tolist(), self.version

    def update(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration] = ()
    ) -> Metrics:
        """One AdamW step of the configured loss; for ``bradley_terry`` row i of each kind answers the same prompt.

        The loss is accumulated over slices that hold the same share of each kind, so that a large batch needs no
        more memory than a micro-batch of each.
        """
        num_slices = math.ceil((len(real) + len(fake) + len(contrast)) / (3 * self.micro_batch_size))
        totals: Metrics = {}
        self.model.train()
        for index in range(num_slices):
            parts: list[list[Demonstration | Rollout]] = [
                list(items[index::num_slices]) for items in (real, fake, contrast)
            ]
            real_logits, fake_logits, *rest = self.logits([item for part in parts for item in part]).split(
                [len(part) for part in parts if part]
            )
            loss, metrics = discriminator_loss(
                real_logits,
                fake_logits,
                kind=self.settings.loss,
                contrast_logits=rest[0] if rest else None,
                contrast_weight=self.settings.contrast_weight if rest else 0.0,
            )
            ((loss + self.model.penalty()) / num_slices).backward()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                totals[name] = totals.get(name, 0.0) + float(value) / num_slices
        self.model.eval()
        totals["grad_norm"] = optimizer_step(
            self.optimizer,
            self.model.parameters(),
            learning_rate=self.settings.learning_rate,
            max_grad_norm=self.settings.max_grad_norm,
        )
        self.version += 1
        return {f"discriminator/{name}": value for name, value in totals.items()}

    def weights(self) -> WeightUpdate:
        """Every entry of the network's state under this version, as arrays that share its memory on CPU."""
        return to_arrays(self.model.network.state_dict(), self.version)

    def adjust(self, *, learning_rate_factor: float, refresh: bool = False) -> None:
        """Multiply the config's learning rate from now on; ``refresh``: forget the optimiser's moments."""
        learning_rate = self.configured.learning_rate * learning_rate_factor
        self.settings = self.configured.model_copy(update={"learning_rate": learning_rate})
        if refresh:
            self.optimizer.state.clear()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.model.export(folder)
        save_optimizer(self.optimizer, folder / "optimizer.safetensors")

    def load(self, folder: Path, *, version: int) -> None:
        restore_weights(self.model.network, folder)
        load_optimizer(self.optimizer, folder / "optimizer.safetensors")
        self.version = version
