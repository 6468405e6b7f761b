"""The built-in discriminator: a network that scores rollouts and learns to separate them from demonstrations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.collate import collate_sequences, num_tokens
from rlgaf_ray.data.handover import loads_from_storage, saves_to_storage
from rlgaf_ray.data.lengths import Response, View, match_lengths
from rlgaf_ray.models.generator import end_of_text_ids
from rlgaf_ray.models.lora import has_adapters, load_adapters, save_adapters
from rlgaf_ray.objectives.discriminator import discriminator_loss
from rlgaf_ray.objectives.policy import TensorMetrics
from rlgaf_ray.training.architectures import DISCRIMINATORS
from rlgaf_ray.training.batching import Batching
from rlgaf_ray.training.discriminator import with_scores
from rlgaf_ray.training.distributed import SINGLE_PROCESS, Group, gather_state_dict, load_full_state_dict, prepare
from rlgaf_ray.training.labels import shuffled
from rlgaf_ray.training.optimizer import (
    build_optimizer,
    load_optimizer,
    optimizer_step,
    save_optimizer,
    schedule_factor,
    skipped,
)
from rlgaf_ray.training.precision import autocast, resolve_precision
from rlgaf_ray.training.randomness import seeded, update_generator
from rlgaf_ray.training.regularization import dropout_of
from rlgaf_ray.training.replay import ReplayBuffer
from rlgaf_ray.types import Demonstration, Metrics, Rollout, ScoredRollout, SequenceBatch, WeightUpdate
from rlgaf_ray.weights.state import to_arrays

REPLAY = "replay.safetensors"


class NeuralDiscriminator:
    """A discriminator network with its optimiser; ``version`` counts its updates."""

    def __init__(
        self,
        folder: str | Path,
        config: Config,
        *,
        pad_token_id: int,
        device: str = "cpu",
        group: Group = SINGLE_PROCESS,
    ) -> None:
        self.configured = self.settings = config.discriminator
        self.needs = config.discriminator.needs
        self.seed = config.run.seed
        self.group = group
        self.batching = Batching.configured(config.learner, group)
        self.pad_token_id = pad_token_id
        self.device = torch.device(device)
        self.dtype = resolve_precision(config.learner.precision, self.device)
        architecture = DISCRIMINATORS[self.settings.architecture]
        self.model = architecture.load(folder, config, pad_token_id=pad_token_id, device=self.device)
        prepare(self.model.network, config.learner, group, dropout=self.settings.dropout > 0)
        self.optimizer = build_optimizer(
            self.model.parameters(),
            learning_rate=self.settings.learning_rate,
            betas=self.settings.betas,
            weight_decay=self.settings.weight_decay,
        )
        self.version = 0
        self.num_warmup_updates = config.discriminator_warmup_updates
        self.num_updates = max(1, math.ceil(config.run.iterations * self.settings.updates_per_generator_update))
        self.view = View.configured(self.settings, lambda: end_of_text_ids(self.model.network.config))
        self.replay: ReplayBuffer | None = None
        if self.settings.replay_share > 0:
            self.replay = ReplayBuffer(
                share=self.settings.replay_share,
                size=self.settings.replay_size,
                seed=config.run.seed,
                paired=self.needs.pairs,
            )

    def logits(self, items: Sequence[Response]) -> torch.Tensor:
        """Compute logits, float32 [B], in one forward pass; gradients follow the surrounding grad mode."""
        with autocast(self.dtype, self.device):
            return self.model(self.collate(items))

    def _lengths(self, items: Sequence[Response]) -> list[int]:
        return [num_tokens(item) + self.model.added_tokens for item in items]

    def collate(self, items: Sequence[Response]) -> SequenceBatch:
        """Pad the items to a batch on the model's device."""
        return collate_sequences(items, self.pad_token_id).to(self.device)

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """Score each rollout: its logit, the tokens' contributions to it, and the discriminator version."""
        return with_scores(rollouts, (), *self.token_scores(rollouts))[0]

    @torch.no_grad()
    def token_scores(self, items: Sequence[Response]) -> tuple[np.ndarray, int]:
        """Return each response token's contribution to the logit, concatenated (float32 [sum of R]), and the version.

        A single array is cheap to send between processes; the caller already has the items.
        """
        read = self.view.read(items)
        # Tokens outside the view contribute 0.
        contributions = [np.zeros(len(item.response_ids), np.float32) for item in items]
        for rows in self.batching.without_gradients.plan(self._lengths(read)):
            sequences = self.collate([read[row] for row in rows or [0]])
            with autocast(self.dtype, self.device):
                parts = self.model.token_logits(sequences).float().cpu().numpy()
            masks = sequences.response_mask.cpu().numpy()
            for row, part, mask in zip(rows, parts, masks, strict=bool(rows)):
                contributions[row][self.view.span(items[row])] = part[mask]
        scores = torch.from_numpy(np.concatenate(contributions))
        return self.group.sum(scores.to(self.device)).cpu().numpy(), self.version

    def update(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration] = ()
    ) -> Metrics:
        """Take one AdamW step on the configured loss; for paired losses row i of each kind has the same prompt.

        The gradient is accumulated over micro-batches, so memory does not grow with the batch, and summed over the
        group. Dropout depends on seed, update number and rank. A group differs from a single process in dropout, and
        otherwise only by rounding.
        """
        mixed: Sequence[Response] = fake
        more: Metrics = {}
        if self.replay is not None:
            real, mixed, num_past = self.replay.exchange(real, fake, self.version)
            more["replayed_share"] = num_past / len(fake)
        kinds: tuple[Sequence[Response], ...] = (real, mixed, contrast)
        if self.settings.labels == "shuffled":
            generator = update_generator(self.seed, self.version, stream=1)
            kinds = shuffled(*kinds, paired=self.needs.pairs, generator=generator)
        if not self.settings.match_lengths:
            kinds = tuple(self.view.read(kind) for kind in kinds)
        else:
            kinds = match_lengths(*kinds, view=self.view)
            more["response_tokens"] = sum(len(item.response_ids) for item in kinds[1]) / len(fake)
        with (
            seeded(self.seed, self.version, self.device, rank=self.group.rank),
            dropout_of(self.model.network, self.settings.dropout),
        ):
            totals = more | self._accumulate_gradients(*kinds)
        totals["learning_rate"] = self.settings.learning_rate * schedule_factor(
            max(0, self.version - self.num_warmup_updates),  # the warm-up on rollouts has the full rate
            num_steps=self.num_updates,
            num_warmup_steps=0,
            schedule=self.settings.learning_rate_schedule,
        )
        totals["grad_norm"] = optimizer_step(
            self.optimizer,
            self.model.parameters(),
            learning_rate=totals["learning_rate"],
            max_grad_norm=self.settings.max_grad_norm,
            group=self.group,
        )
        totals["skipped_steps"] = skipped(totals["grad_norm"])
        self.version += 1
        return {f"discriminator/{name}": value for name, value in totals.items()}

    def _accumulate_gradients(
        self, real: Sequence[Response], fake: Sequence[Response], contrast: Sequence[Response]
    ) -> Metrics:
        """Accumulate this rank's share of the gradient; return the metrics of the full batch without prefix."""
        settings, items = self.settings, [*real, *fake, *contrast]
        counts = [len(part) for part in (real, fake, contrast) if part]

        def loss_of(logits: torch.Tensor, clipped: bool | None = None) -> tuple[torch.Tensor, TensorMetrics]:
            real_logits, fake_logits, *rest = logits.split(counts)
            return discriminator_loss(
                real_logits,
                fake_logits,
                kind=settings.loss,
                contrast_logits=rest[0] if rest else None,
                contrast_weight=settings.contrast_weight if rest else 0.0,
                positive_share=settings.positive_share,
                clipped=clipped,
            )

        def logits_of(forwards: list[list[int]]) -> torch.Tensor:
            """Return logits [B] of all items; 0 for items outside these forward passes."""
            # Cast the weights once for all forward passes, except shards, which are gathered in each pass.
            with nullcontext() if self.group.shards else autocast(self.dtype, self.device):
                parts = [self.logits([items[row] for row in rows or [0]]) for rows in forwards]
            logits = torch.zeros(len(items), dtype=parts[0].dtype, device=self.device)
            for rows, part in zip(forwards, parts, strict=True):
                if rows:
                    logits = logits.index_copy(0, torch.tensor(rows, device=self.device), part)
                else:
                    logits = logits + 0 * part  # dummy pass of a rank without rows, for the collectives
            return logits

        passes, clipped = self._passes(items, counts), None
        if settings.loss_traits.clipped and (len(passes) > 1 or self.group.size > 1):
            # The risk of the full batch decides, computed with the same dropout as in the passes below.
            with torch.no_grad(), seeded(self.seed, self.version, self.device, rank=self.group.rank):
                all_logits = self.group.sum(torch.stack([logits_of(forwards) for forwards in passes]).sum(0))
            clipped = bool(loss_of(all_logits)[1]["negative_risk"] < 0)
        seen = torch.zeros(len(items), device=self.device)
        for index, forwards in enumerate(passes):
            logits = logits_of(forwards)
            # The loss sums over sequences (or pairs), so the zeros of other rows do not affect these gradients.
            loss, _ = loss_of(logits, clipped)
            if index == 0 and self.group.first:
                loss = loss + self.model.penalty()
            loss.backward()
            seen = seen + logits.detach()
        loss, metrics = loss_of(self.group.sum(seen))
        return {name: float(value) for name, value in {"loss": loss, **metrics}.items()}

    def _passes(self, items: Sequence[Response], counts: Sequence[int]) -> list[list[list[int]]]:
        """Return the rows of each forward pass of each backward pass, grouped by length and keeping pairs together.

        A backward pass covers up to three micro-batches, or one of each kind for pairs. A single forward pass for all
        of them is no faster on CPU and has more padding (``benchmarks/discriminator_update.py``).
        """
        lengths = self._lengths(items)
        if not self.needs.pairs:
            plan = self.batching.by_length(lengths)
            return [plan[start : start + 3] for start in range(0, len(plan), 3)]
        starts = range(0, sum(counts), counts[0])  # contrastive has several contrast rows of each prompt
        pairs = [max(lengths[start + row] for start in starts) for row in range(counts[0])]
        return [
            [[start + row for row in rows] for start in starts]
            for rows in self.batching.by_length(pairs, sequences_per_row=len(starts))
        ]

    def weights(self) -> WeightUpdate | None:
        """Return rank 0's full state dict under the current version, on CPU without copying; None on other ranks."""
        state = gather_state_dict(self.model.network, self.group)
        return None if state is None else to_arrays(state, self.version)

    def adjust(self, *, learning_rate_factor: float, refresh: bool = False) -> None:
        """Scale the configured learning rate from now on; ``refresh`` resets the optimiser's moments."""
        learning_rate = self.configured.learning_rate * learning_rate_factor
        self.settings = self.configured.model_copy(update={"learning_rate": learning_rate})
        if refresh:
            self.optimizer.state.clear()

    @saves_to_storage
    def save(self, folder: Path) -> None:
        """Checkpoint full tensors, which a group of another size or strategy can load; written by rank 0."""
        folder.mkdir(parents=True, exist_ok=True)
        if has_adapters(self.model.network):
            if self.group.first:
                save_adapters(self.model.network, folder)
        elif (state := gather_state_dict(self.model.network, self.group)) is not None:
            self.model.export(folder, state)
        save_optimizer(self.optimizer, folder / "optimizer.safetensors", self.group)
        if self.replay is not None and self.group.first:
            self.replay.save(folder / REPLAY)

    @loads_from_storage
    def load(self, folder: Path, *, version: int) -> None:
        """Restore a checkpoint written after ``version`` updates."""
        if has_adapters(self.model.network):
            load_adapters(self.model.network, folder)
        else:
            load_full_state_dict(self.model.network, folder)
        load_optimizer(self.optimizer, folder / "optimizer.safetensors")
        if self.replay is not None:
            self.replay.load(folder / REPLAY)
        self.version = version
