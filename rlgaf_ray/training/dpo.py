"""Preference updates: demonstrations are preferred to samples or to negatives. The discriminator is not used.

- DPO (arXiv 2305.18290) with the policy's own samples as rejected responses and the frozen reference.
- The same with labelled negatives as rejected responses (``rejected=labels``); the samples are then only measured.
- SPIN (arXiv 2401.01335), with ``self_play``: the reference is the policy that sampled the batch. One iteration is one
  SPIN iteration if the batch has a sample for every demonstration and ``epochs`` and ``minibatches`` give enough
  steps on it.
- DITTO (arXiv 2406.00888, section 3.2), with ``replay_share`` and ``between_share``: samples of earlier iterations are
  also rejected, in favour of demonstrations or of this iteration's samples.
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
from rlgaf_ray.training.policy import KLController, Policy
from rlgaf_ray.training.policy_metrics import MetricSums
from rlgaf_ray.types import Demonstration, Metrics, SequenceBatch, TrainBatch


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A chosen and a rejected response; a labelled negative may have another prompt."""

    chosen: Demonstration
    rejected: Demonstration


class EarlierSamples:
    """The most recent samples of previous iterations."""

    def __init__(self, size: int) -> None:
        self.samples: deque[Demonstration] = deque(maxlen=size)

    def draw(self, prompt_ids: np.ndarray, generator: np.random.Generator) -> Demonstration | None:
        """Return a random sample for this prompt, or None if there is none."""
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
        """Run one update (see ``Algorithm.update``).

        ``text``: the demonstration of each rollout's prompt by row; with ``rejected=labels``, then their negatives.
        """
        assert text is not None, "DPO needs the demonstration of each rollout's prompt"
        settings, seed = self.settings, [policy.config.run.seed, iteration]
        if settings.rejected == "labels":
            rows = rows_of(text)
            half = len(rows) // 2
            pairs = [PreferencePair(*pair) for pair in zip(rows[:half], rows[half:], strict=True)]
        else:
            sampled = rows_of(batch.sequences)
            pairs = self.pairs(rows_of(text), sampled, np.random.default_rng([*seed, 1]))
            self.earlier.samples.extend(sampled)
        items = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
        sequences = collate_sequences(items, self.pad_token_id).to(policy.device)
        anchor = policy.model if settings.self_play else policy.kl_reference
        reference = policy.frozen_logprobs(sequences, anchor).sum(1)

        sums, steps, num_skipped = MetricSums(), Metrics(), 0.0
        sums.add(policy.policy_metrics(batch), 1.0)
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
        """Build a pair per rollout; without an earlier sample of the prompt, demonstration over rollout."""
        draws = generator.random(len(sampled))
        pairs = []
        for draw, demonstration, sample in zip(draws, demonstrations, sampled, strict=True):
            earlier = None
            if draw < self.settings.replay_share + self.settings.between_share:
                earlier = self.earlier.draw(sample.prompt_ids, generator)
            chosen = demonstration if earlier is None or draw < self.settings.replay_share else sample
            pairs.append(PreferencePair(chosen, sample if earlier is None else earlier))
        return pairs

    def parts(self, policy: Policy, sequences: SequenceBatch, minibatch: torch.Tensor) -> list[MicroBatch]:
        """Return this rank's micro-batches: the chosen rows [b], then the rejected rows [b] of the same pairs."""
        num_pairs, lengths = len(sequences.token_ids) // 2, sequences.attention_mask.sum(1)
        longest = torch.maximum(lengths[:num_pairs], lengths[num_pairs:])[minibatch].tolist()
        micro_batches = []
        for indices in policy.batching.plan(longest, sequences_per_row=2):
            rows = minibatch[indices or [0]]
            width = max(longest[index] for index in indices or [0])
            share = len(indices) / len(minibatch)
            micro_batches.append(MicroBatch(torch.cat([rows, rows + num_pairs]), width, share, share))
        return micro_batches

    def loss(
        self, policy: Policy, sequences: SequenceBatch, reference: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Compute metrics and loss of b pairs; ``sequences`` [2b, T], ``reference`` [2b] summed log-probs."""
        chosen, rejected = policy.logprobs(sequences).sum(1).chunk(2)
        losses, pair_metrics = dpo_loss(chosen, rejected, *reference.chunk(2), beta=self.kl.coefficient)
        metrics = {f"preference_{name}": value for name, value in pair_metrics.items()}
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
    """Split every row into prompt and response."""
    token_ids, response = sequences.token_ids.cpu().numpy(), sequences.response_mask.cpu().numpy()
    return [
        Demonstration(row[: mask.argmax()].astype(np.int32), row[mask].astype(np.int32))
        for row, mask in zip(token_ids, response, strict=True)
    ]
