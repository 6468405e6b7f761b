"""One REINFORCE update (RLGAF, eq. 1-2): reward-to-go, a baseline, one step on the whole batch.

SeqGAN's policy gradient is the same update with Monte-Carlo action values in place of the reward-to-go.
"""

from __future__ import annotations

import math

import torch

from rlgaf_ray.config.generator import PolicyGradientSettings
from rlgaf_ray.objectives.advantages import (
    batch_mean_baseline,
    group_mean_baseline,
    leave_one_out_baseline,
    moving_average,
    past_scores_baseline,
    position_mean_baseline,
    rewards_to_go,
    scale_advantages,
)
from rlgaf_ray.objectives.kl import kl_estimate
from rlgaf_ray.objectives.policy import masked_average, reinforce_loss
from rlgaf_ray.objectives.rewards import at_the_end, entropy_rewards
from rlgaf_ray.training.policy import (
    KLController,
    MetricSums,
    Policy,
    rollout_metrics,
)
from rlgaf_ray.types import Metrics, SequenceBatch, TrainBatch


class Reinforce:
    def __init__(self, settings: PolicyGradientSettings) -> None:
        self.settings = settings
        self.kl = KLController(settings.kl)
        self.baseline: float | None = None  # of the moving average, over the iterations before this one

    def update(
        self,
        policy: Policy,
        batch: TrainBatch,
        sequence_rewards: torch.Tensor,
        iteration: int,
        demonstrations: SequenceBatch | None = None,
    ) -> Metrics:
        settings, mask = self.settings, batch.sequences.response_mask
        estimator = settings.kl.estimator
        reference = None if estimator == "exact" else policy.frozen_logprobs(batch.sequences, policy.reference)
        penalties = torch.zeros_like(batch.behaviour_logprobs)
        if settings.kl.placement == "reward":
            assert reference is not None and estimator != "exact", "the exact KL is a term of the loss"
            # The engine's log-probs are those of the distribution that was sampled: no second pass is needed.
            distance = kl_estimate(batch.behaviour_logprobs, reference, estimator=estimator)
            penalties = self.kl.coefficient * mask * distance
        if policy.entropy_bonus > 0:
            penalties = penalties - entropy_rewards(batch.behaviour_logprobs, mask, coefficient=policy.entropy_bonus)
        advantages = self.advantages(batch, sequence_rewards, penalties)

        sums = MetricSums()
        for part in policy.batching.micro_batches(batch.sequences, average=settings.loss_average):
            sequences, behaviour = part.sequences(batch.sequences), part.of(batch.behaviour_logprobs)
            if estimator == "exact":
                logprobs, anchor, distance = policy.logprobs_and_exact_kl(sequences)
            else:
                assert reference is not None
                logprobs, anchor = policy.logprobs(sequences), part.of(reference)
                distance = kl_estimate(logprobs, anchor, estimator=estimator)
            loss, metrics = reinforce_loss(
                logprobs,
                part.of(advantages),
                sequences.response_mask,
                average=settings.loss_average,
                importance_weights=policy.importance_weights(logprobs, behaviour),
            )
            if settings.kl.placement == "loss" and self.kl.coefficient > 0:
                penalty = masked_average(distance, sequences.response_mask, average=settings.loss_average)
                loss = loss + self.kl.coefficient * penalty
            (loss * part.share).backward()
            metrics |= rollout_metrics(logprobs, anchor, behaviour, sequences.response_mask)
            if estimator == "exact":
                metrics["kl"] = masked_average(distance.detach(), sequences.response_mask, average="token")
            sums.add({"loss": loss, "policy_loss": metrics.pop("policy_loss")}, part.share)
            sums.add(metrics, part.token_share)
        if demonstrations is not None:
            policy.text_backward(demonstrations, settings.demonstration_coefficient, sums, name="demonstration_loss")
        totals = sums.means(policy.group)
        totals |= policy.step(iteration)
        totals["kl_coefficient"] = self.kl.coefficient
        totals["advantage_deviation"] = float(advantages[mask].std())
        self.kl.observe(totals["kl"], num_samples=len(mask))
        return totals

    def advantages(self, batch: TrainBatch, sequence_rewards: torch.Tensor, penalties: torch.Tensor) -> torch.Tensor:
        """[B, T]: reward-to-go (or action values) less the baselines, scaled.

        ``sequence_rewards``: [B]; ``penalties``: [B, T], taken from the reward at each token.
        """
        settings, mask, group_size = self.settings, batch.sequences.response_mask, batch.group_size
        if batch.action_values is None:
            rewards = at_the_end(sequence_rewards, mask) - penalties
            returns = rewards_to_go(rewards, mask, discount=settings.discount)
        else:
            returns = batch.action_values + rewards_to_go(-penalties, mask, discount=settings.discount)
        if settings.credit == "token":
            assert batch.token_scores is not None, "the scores came without their tokens' parts"
            returns = returns - past_scores_baseline(batch.token_scores, mask)
        totals = sequence_rewards - penalties.sum(1)
        match settings.baseline:
            case "none":
                baseline = torch.zeros_like(totals)[:, None]
            case "leave_one_out":
                baseline = leave_one_out_baseline(totals, group_size=group_size)[:, None]
            case "group_mean":
                baseline = group_mean_baseline(totals, group_size=group_size)[:, None]
            case "batch_mean":
                baseline = batch_mean_baseline(returns, mask)
            case "position_mean":
                baseline = position_mean_baseline(returns, mask)
            case "moving_average":
                # The first batch has no past: its own mean stands in, a bias of one iteration.
                mean = float(totals.mean())
                past = mean if self.baseline is None else self.baseline
                baseline = torch.tensor(past)
                if math.isfinite(mean):
                    self.baseline = moving_average(self.baseline, mean, decay=settings.baseline_decay)
        centred = (returns - baseline) * mask
        scaled = scale_advantages(centred, mask, scale=settings.advantage_scale, group_size=group_size)
        limit = settings.advantage_clip
        return scaled if limit is None else scaled.clamp(-limit, limit)

    def state_dict(self) -> dict[str, float | None]:
        return {"kl_coefficient": self.kl.coefficient, "baseline": self.baseline}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        coefficient = state["kl_coefficient"]
        assert coefficient is not None
        self.kl.coefficient, self.baseline = coefficient, state["baseline"]
