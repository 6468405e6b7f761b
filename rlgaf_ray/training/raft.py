"""Rejection fine-tuning: supervised updates on the highest-reward sample of each prompt.

RAFT (Dong et al. 2023, arXiv 2304.06767, algorithm 1); an iteration is one of its rounds.
"""

from __future__ import annotations

from pathlib import Path

import torch

from rlgaf_ray.config.schema import Config
from rlgaf_ray.objectives.policy import language_model_loss, masked_average
from rlgaf_ray.training.algorithm import Algorithm
from rlgaf_ray.training.batching import shuffled_minibatches
from rlgaf_ray.training.policy import KLController, Policy
from rlgaf_ray.training.policy_metrics import MetricSums
from rlgaf_ray.types import Metrics, SequenceBatch, TrainBatch


class RejectionFineTuning(Algorithm):
    """Maximum likelihood on the best sample of each prompt."""

    def __init__(self, folder: Path, config: Config, policy: Policy, *, pad_token_id: int) -> None:
        self.settings = config.generator.raft
        self.kl = KLController(self.settings.kl)

    def update(
        self,
        policy: Policy,
        batch: TrainBatch,
        sequence_rewards: torch.Tensor,
        iteration: int,
        text: SequenceBatch | None,
    ) -> Metrics:
        """Run one update (see ``Algorithm.update``); ``text`` has as many demonstrations as the batch has rollouts.

        Each step uses as many demonstrations as selected samples.
        """
        settings, sequences = self.settings, batch.sequences
        kept = best_of_groups(sequence_rewards, batch.group_size)
        sums, steps, num_skipped = MetricSums(), Metrics(), 0.0
        sums.add(policy.policy_metrics(batch), 1.0)
        for minibatch in shuffled_minibatches(
            len(kept),
            epochs=settings.epochs,
            minibatches=settings.minibatches,
            seed=[policy.config.run.seed, iteration],
            device=policy.device,
        ):
            for part in policy.batching.micro_batches(sequences, average="token", among=kept[minibatch]):
                rows = part.sequences(sequences)
                if self.kl.coefficient > 0:
                    logprobs, _, distance = policy.logprobs_and_exact_kl(rows)
                    penalty = self.kl.coefficient * masked_average(distance, rows.response_mask, average="token")
                else:
                    logprobs, penalty = policy.logprobs(rows), torch.zeros((), device=policy.device)
                nll = language_model_loss(logprobs, rows.response_mask)
                ((nll + penalty) * part.share).backward()
                sums.add({"loss": nll + penalty, "policy_loss": nll}, part.share)
            if text is not None:
                policy.text_backward(
                    text, settings.demonstration_coefficient, sums, name="demonstration_loss", among=kept[minibatch]
                )
            steps = policy.step(iteration)
            num_skipped += steps["skipped_steps"]
        totals = sums.means(policy.group) | steps | {"skipped_steps": num_skipped}
        gain = sequence_rewards[kept].mean() - sequence_rewards.mean()
        return totals | {"kl_coefficient": self.kl.coefficient, "selection_gain": float(gain)}


def best_of_groups(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return the row of each prompt's highest reward (the first on ties): [B] -> int64 [B / group_size]."""
    groups = rewards.reshape(-1, group_size)
    return groups.argmax(1) + torch.arange(len(groups), device=rewards.device) * group_size
