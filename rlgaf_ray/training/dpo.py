"""Updates from pairs: a demonstration is preferred to a sample for the same prompt. The discriminator is not read.

- DPO (arXiv 2305.18290) with one's own samples as the rejected responses, and the frozen reference.
- SPIN (arXiv 2401.01335), with ``self_play``: the reference is the policy that sampled the batch. One iteration here is
  one of SPIN's, if the batch has a sample for every demonstration and ``epochs`` and ``minibatches`` train it through.
- DITTO (arXiv 2406.00888, section 3.2), with ``replay_share`` and ``between_share``: samples of earlier iterations are
  rejected too, and this iteration's are preferred to them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.collate import collate_sequences
from rlgaf_ray.objectives.preference import dpo_loss
from rlgaf_ray.training.algorithm import Algorithm
from rlgaf_ray.training.batching import MicroBatch, shuffled_minibatches
from rlgaf_ray.training.policy import KLController, MetricSums, Policy
from rlgaf_ray.types import Demonstration, Metrics, SequenceBatch, TrainBatch


@dataclass(frozen=True, slots=True)
class PreferencePair:
    chosen: Demonstration
    rejected: Demonstration


class EarlierSamples:
    """The newest samples of the iterations before this one."""

    def __init__(self, size: int) -> None:
        self.samples: deque[Demonstration] = deque(maxlen=size)

    def draw(self, prompt_ids: np.ndarray, generator: np.random.Generator) -> Demonstration | None:
        """One for this prompt; None where there is none."""
        known = [sample for sample in self.samples if np.array_equal(sample.prompt_ids, prompt_ids)]
        return known[generator.integers(len(known))] if known else None

    def state_dict(self) -> list[list[list[int]]]:
        return [[sample.prompt_ids.tolist(), sample.response_ids.tolist()] for sample in self.samples]

    def load_state_dict(self, state: list[list[list[int]]]) -> None:
        self.samples.clear()
        self.samples.extend(Demonstration(*(np.array(ids, np.int32) for ids in pair)) for pair in state)


class DirectPreference(Algorithm):
    def __init__(self, folder: Path, config: Config, policy: Policy, *, pad_token_id: int) -> None:
        self.settings = config.generator.dpo
        self.kl = KLController(self.settings.kl)
        self.pad_token_id = pad_token_id
        self.earlier = EarlierSamples(self.settings.replay_size)

    def update(
        self,
        policy: Policy,
        batch: TrainBatch,
        sequence_rewards: torch.Tensor,
        iteration: int,
        text: SequenceBatch | None,
    ) -> Metrics:
        """As ``Algorithm.update``. ``text``: the demonstrations of the rollouts' prompts, row by row."""
        assert text is not None, "each rollout comes with the demonstration of its prompt"
        settings, seed = self.settings, [policy.config.run.seed, iteration]
        sampled = rows_of(batch.sequences)
        pairs = self.pairs(rows_of(text), sampled, np.random.default_rng([*seed, 1]))
        self.earlier.samples.extend(sampled)
        items = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
        sequences = collate_sequences(items, self.pad_token_id).to(policy.device)
        anchor = policy.model if settings.self_play else policy.kl_reference
        reference = policy.frozen_logprobs(sequences, anchor).sum(1)

        sums, steps, num_skipped = MetricSums(), Metrics(), 0.0
        sums.add(policy.rollout_metrics(batch), 1.0)
        for minibatch in shuffled_minibatches(
            len(pairs), epochs=settings.epochs, minibatches=settings.minibatches, seed=seed, device=policy.device
        ):
            for part in self.parts(policy, sequences, minibatch):
                metrics, loss = self.loss(policy, part.sequences(sequences), reference[part.rows])
                (loss * part.share).backward()
                sums.add(metrics, part.share)
            steps = policy.step(iteration)
            num_skipped += steps["skipped_steps"]
        totals = sums.means(policy.group) | steps | {"skipped_steps": num_skipped}
        return totals | {"kl_coefficient": self.kl.coefficient}

    def pairs(
        self, demonstrations: list[Demonstration], sampled: list[Demonstration], generator: np.random.Generator
    ) -> list[PreferencePair]:
        """One for each rollout. A pair without an earlier sample of its prompt is a demonstration over the rollout."""
        kinds = generator.random(len(sampled))
        found = []
        for kind, demonstration, sample in zip(kinds, demonstrations, sampled, strict=True):
            earlier = None
            if kind < self.settings.replay_share + self.settings.between_share:
                earlier = self.earlier.draw(sample.prompt_ids, generator)
            chosen = demonstration if earlier is None or kind < self.settings.replay_share else sample
            found.append(PreferencePair(chosen, sample if earlier is None else earlier))
        return found

    def parts(self, policy: Policy, sequences: SequenceBatch, minibatch: torch.Tensor) -> list[MicroBatch]:
        """This rank's forward passes; chosen rows [b] and then their rejected ones [b]."""
        num_pairs, lengths = len(sequences.token_ids) // 2, sequences.attention_mask.sum(1)
        longest = torch.maximum(lengths[:num_pairs], lengths[num_pairs:])[minibatch].tolist()
        found = []
        for places in policy.batching.plan(longest, per_row=2):
            rows = minibatch[places or [0]]
            width = max(longest[place] for place in places or [0])
            share = len(places) / len(minibatch)
            found.append(MicroBatch(torch.cat([rows, rows + num_pairs]), width, share, share))
        return found

    def loss(
        self, policy: Policy, sequences: SequenceBatch, reference: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Metrics and loss of some pairs: [2b, T] and [2b]."""
        chosen, rejected = policy.logprobs(sequences).sum(1).chunk(2)
        losses, of_pairs = dpo_loss(chosen, rejected, *reference.chunk(2), beta=self.kl.coefficient)
        metrics = {f"preference_{name}": value for name, value in of_pairs.items()}
        loss = losses.mean()
        if self.settings.demonstration_coefficient > 0:
            num_tokens, _ = sequences.response_mask.sum(1).chunk(2)
            metrics["demonstration_loss"] = -(chosen / num_tokens).mean()
            loss = loss + self.settings.demonstration_coefficient * metrics["demonstration_loss"]
        return metrics | {"loss": loss}, loss

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"earlier": self.earlier.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.earlier.load_state_dict(state["earlier"])


def rows_of(sequences: SequenceBatch) -> list[Demonstration]:
    """Prompt and response of every row."""
    token_ids, response = sequences.token_ids.cpu().numpy(), sequences.response_mask.cpu().numpy()
    return [
        Demonstration(row[: mask.argmax()].astype(np.int32), row[mask].astype(np.int32))
        for row, mask in zip(token_ids, response, strict=True)
    ]
