"""The discriminator's two acts: scoring rollouts, and one update that tells them from demonstrations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig

from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.data.lengths import match_lengths, without_end
from rlgaf_ray.models.cnn import CnnConfig, CnnDiscriminator
from rlgaf_ray.models.generator import end_of_text_ids, restore_weights
from rlgaf_ray.models.lora import add_adapters, has_adapters, load_adapters, merged_state, save_adapters
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.objectives.discriminator import discriminator_loss
from rlgaf_ray.objectives.instance_noise import add_instance_noise, instance_noise_scale
from rlgaf_ray.training.gradient_penalty import gradient_penalty
from rlgaf_ray.training.optimizer import build_optimizer, load_optimizer, optimizer_step, save_optimizer
from rlgaf_ray.training.precision import autocast, resolve_precision
from rlgaf_ray.training.randomness import seeded
from rlgaf_ray.training.regularization import bound_spectral_norm, freeze_lower_layers
from rlgaf_ray.training.replay import ReplayBuffer
from rlgaf_ray.types import Demonstration, Metrics, Rollout, ScoredRollout, SequenceBatch, WeightUpdate
from rlgaf_ray.weights.state import to_arrays

REPLAY = "replay.safetensors"


def load_discriminator(
    folder: str | Path, config: Config, *, pad_token_id: int, device: torch.device
) -> ScalarModel | CnnDiscriminator:
    """The kind of network that the folder holds: SeqGAN's CNN, or a language model, which gets a scalar head."""
    trust_remote_code = config.model.trust_remote_code
    if isinstance(AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code), CnnConfig):
        return CnnDiscriminator.load(folder, device=device)
    model = ScalarModel.load(
        folder,
        pooling=config.discriminator.pooling,
        head_dropout=config.discriminator.head_dropout,
        pad_token_id=pad_token_id,
        seed=config.run.seed,
        trust_remote_code=trust_remote_code,
        device=device,
    )
    add_adapters(model.network, config.model.lora, seed=config.run.seed, trained=[model.network.score])
    return model


def with_scores(rollouts: Sequence[Rollout], token_scores: np.ndarray, version: int) -> list[ScoredRollout]:
    """The rollouts with what ``Discriminator.token_scores`` gave for them."""
    ends = np.cumsum([len(rollout.response_ids) for rollout in rollouts])
    rows = np.split(token_scores, ends[:-1])
    return [
        ScoredRollout(rollout, float(row.sum()), version, token_scores=row)
        for rollout, row in zip(rollouts, rows, strict=True)
    ]


class Discriminator:
    """One network, its optimiser, and the number of updates it has had (``version``)."""

    def __init__(self, folder: str | Path, config: Config, *, pad_token_id: int, device: str = "cpu") -> None:
        self.configured = self.settings = config.discriminator
        self.seed = config.run.seed
        self.micro_batch_size = config.learner.micro_batch_size
        self.pad_token_id = pad_token_id
        self.device = torch.device(device)
        self.dtype = resolve_precision(config.learner.precision, self.device)
        self.model = load_discriminator(folder, config, pad_token_id=pad_token_id, device=self.device)
        if self.settings.spectral_norm:
            bound_spectral_norm(self.model.network.score)
        if self.settings.frozen_layers > 0:
            freeze_lower_layers(self.model.network, self.settings.frozen_layers)
        self.optimizer = build_optimizer(
            self.model.parameters(),
            learning_rate=self.settings.learning_rate,
            betas=self.settings.betas,
            weight_decay=self.settings.weight_decay,
        )
        self.version = 0
        self.end_of_text_ids = end_of_text_ids(self.model.network.config) if self.settings.match_lengths else []
        self.replay: ReplayBuffer | None = None
        if self.settings.replay_share > 0:
            self.replay = ReplayBuffer(
                share=self.settings.replay_share, size=self.settings.replay_size, seed=config.run.seed
            )

    def logits(self, items: Sequence[Demonstration | Rollout], *, noise: float = 0.0) -> torch.Tensor:
        """float32 [B] on the model's device, with the gradient of the surrounding mode.

        ``noise``: the relative deviation of instance noise on the response's embeddings.
        """
        with autocast(self.dtype, self.device):
            return torch.cat([self._forward(sequences, noise) for sequences in self._micro_batches(items)])

    def collate(self, items: Sequence[Demonstration | Rollout]) -> SequenceBatch:
        return collate_sequences(items, self.pad_token_id).to(self.device)

    def _micro_batches(self, items: Sequence[Demonstration | Rollout]) -> Iterator[SequenceBatch]:
        for start in range(0, len(items), self.micro_batch_size):
            yield self.collate(items[start : start + self.micro_batch_size])

    def _forward(self, sequences: SequenceBatch, noise: float) -> torch.Tensor:
        if noise == 0:
            return self.model(sequences)
        assert isinstance(self.model, ScalarModel), "a CNN has no instance noise"
        embeddings = add_instance_noise(self.model.embed(sequences), sequences.response_mask, scale=noise)
        return self.model.logits_of(sequences, embeddings)

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """Each rollout with its logit, what each of its tokens adds to it, and the version that gave them."""
        return with_scores(rollouts, *self.token_scores(rollouts))

    @torch.no_grad()
    def token_scores(self, rollouts: Sequence[Rollout]) -> tuple[np.ndarray, int]:
        """What each response token adds to its logit, row after row in one array (float32 [sum of R]), and the version.

        One array travels between processes, and the rollouts, which the caller has, do not.
        """
        rows: list[np.ndarray] = []
        with autocast(self.dtype, self.device):
            for sequences in self._micro_batches(self._as_learned(rollouts)):
                parts, masks = self.model.token_logits(sequences).cpu().numpy(), sequences.response_mask.cpu().numpy()
                rows += [row[mask] for row, mask in zip(parts, masks, strict=True)]
        lengths = [len(rollout.response_ids) for rollout in rollouts]
        # An end of text that was not read adds nothing.
        whole = [np.pad(row, (0, length - len(row))) for row, length in zip(rows, lengths, strict=True)]
        return np.concatenate(whole), self.version

    @torch.no_grad()
    def demonstration_logits(self, demonstrations: Sequence[Demonstration]) -> list[float]:
        """What ``score`` would give demonstrations."""
        return self.logits(self._as_learned(demonstrations)).tolist()

    def _as_learned(self, items: Sequence[Demonstration | Rollout]) -> Sequence[Demonstration | Rollout]:
        """With matched lengths it has never learned what an end of text means, and does not read it."""
        if not self.settings.match_lengths:
            return items
        return [without_end(item, self.end_of_text_ids) for item in items]

    def update(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration] = ()
    ) -> Metrics:
        """One AdamW step of the configured loss; for ``bradley_terry`` row i of each kind answers the same prompt.

        The loss is accumulated over slices that hold the same share of each kind, so that a large batch needs no
        more memory than a micro-batch of each. What is drawn depends on the seed and the number of this update.
        """
        shown: Sequence[Demonstration | Rollout] = fake
        more: Metrics = {}
        if self.replay is not None:
            shown, num_past = self.replay.exchange(fake, self.version)
            more["replayed_share"] = num_past / len(fake)
        if self.settings.match_lengths:
            real, shown, contrast = match_lengths(real, shown, contrast, end_of_text_ids=self.end_of_text_ids)
            more["response_tokens"] = sum(len(item.response_ids) for item in shown) / len(shown)
        with seeded(self.seed, self.version, self.device):
            totals = more | self._accumulate_gradients(real, shown, contrast)
        totals["grad_norm"] = optimizer_step(
            self.optimizer,
            self.model.parameters(),
            learning_rate=self.settings.learning_rate,
            max_grad_norm=self.settings.max_grad_norm,
        )
        if self.settings.spectral_norm:
            totals["spectral_norm"] = bound_spectral_norm(self.model.network.score)
        self.version += 1
        return {f"discriminator/{name}": value for name, value in totals.items()}

    def _accumulate_gradients(
        self,
        real: Sequence[Demonstration | Rollout],
        fake: Sequence[Demonstration | Rollout],
        contrast: Sequence[Demonstration | Rollout],
    ) -> Metrics:
        """Gradients of the whole loss, and its metrics without their prefix."""
        settings = self.settings
        noise = instance_noise_scale(
            self.version, start=settings.instance_noise, num_steps=settings.instance_noise_steps
        )
        num_slices = math.ceil((len(real) + len(fake) + len(contrast)) / (3 * self.micro_batch_size))
        totals: Metrics = {}
        self.model.train()
        for index in range(num_slices):
            parts: list[list[Demonstration | Rollout]] = [
                list(items[index::num_slices]) for items in (real, fake, contrast)
            ]
            logits = self.logits([item for part in parts for item in part], noise=noise)
            real_logits, fake_logits, *rest = logits.split([len(part) for part in parts if part])
            loss, metrics = discriminator_loss(
                real_logits,
                fake_logits,
                kind=settings.loss,
                contrast_logits=rest[0] if rest else None,
                contrast_weight=settings.contrast_weight if rest else 0.0,
                label_smoothing_real=settings.label_smoothing_real,
                label_smoothing_fake=settings.label_smoothing_fake,
            )
            ((loss + self.model.penalty()) / num_slices).backward()
            if settings.gradient_penalty != "none":
                assert isinstance(self.model, ScalarModel), "a CNN has no gradient penalty"
                penalty = gradient_penalty(
                    self.model,
                    parts[0],
                    parts[1],
                    kind=settings.gradient_penalty,
                    pad_token_id=self.pad_token_id,
                    device=self.device,
                )
                (settings.gradient_penalty_weight * penalty / num_slices).backward()
                metrics["gradient_penalty"] = penalty.detach()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                totals[name] = totals.get(name, 0.0) + float(value) / num_slices
        self.model.eval()
        if settings.instance_noise > 0:
            totals["instance_noise"] = noise
        return totals

    def weights(self) -> WeightUpdate:
        """Every entry of the network's state under this version, as arrays that share its memory on CPU."""
        return to_arrays(merged_state(self.model.network), self.version)

    def adjust(self, *, learning_rate_factor: float, refresh: bool = False) -> None:
        """Multiply the config's learning rate from now on; ``refresh``: forget the optimiser's moments."""
        learning_rate = self.configured.learning_rate * learning_rate_factor
        self.settings = self.configured.model_copy(update={"learning_rate": learning_rate})
        if refresh:
            self.optimizer.state.clear()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if has_adapters(self.model.network):
            save_adapters(self.model.network, folder)
        else:
            self.model.export(folder)
        save_optimizer(self.optimizer, folder / "optimizer.safetensors")
        if self.replay is not None:
            self.replay.save(folder / REPLAY)

    def load(self, folder: Path, *, version: int) -> None:
        if has_adapters(self.model.network):
            load_adapters(self.model.network, folder)
        else:
            restore_weights(self.model.network, folder)
        load_optimizer(self.optimizer, folder / "optimizer.safetensors")
        if self.replay is not None:
            self.replay.load(folder / REPLAY)
        self.version = version
