"""REINFORCE updates (RLGAF, eq. 1-2): returns, a baseline, one step on the full batch.

With a clip range this is GRPO or GSPO: several steps per batch on PPO's clipped ratio, without a critic. SeqGAN's
policy gradient is the same update with Monte-Carlo action values instead of the reward-to-go.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from rlgaf_ray.config.policy_gradient import PolicyGradientSettings
from rlgaf_ray.objectives.advantages import rewards_to_go, scale_advantages
from rlgaf_ray.objectives.baselines import (
    batch_mean_baseline,
    group_mean_baseline,
    leave_one_out_baseline,
    moving_average,
    other_lengths,
    past_scores,
    position_mean_baseline,
)
from rlgaf_ray.objectives.kl import kl_estimate
from rlgaf_ray.objectives.policy import TensorMetrics, masked_average, ppo_policy_loss, reinforce_loss
from rlgaf_ray.objectives.rewards import at_the_end, entropy_rewards
from rlgaf_ray.training.algorithm import Algorithm
from rlgaf_ray.training.batching import shuffled_minibatches
from rlgaf_ray.training.policy import KLController, Policy
from rlgaf_ray.training.policy_metrics import MetricSums, policy_metrics
from rlgaf_ray.types import Metrics, SequenceBatch, TrainBatch


class Reinforce(Algorithm):
    """REINFORCE and its critic-free variants (RLOO, GRPO, GSPO, SeqGAN)."""

    def __init__(self, settings: PolicyGradientSettings) -> None:
        self.settings = settings
        self.kl = KLController(settings.kl)
        self.baseline: float | None = None  # moving average over previous iterations

    def update(
        self,
        policy: Policy,
        batch: TrainBatch,
        sequence_rewards: torch.Tensor,
        iteration: int,
        text: SequenceBatch | None = None,
    ) -> Metrics:
        """Run one update (see ``Algorithm.update``); ``text`` has demonstrations."""
        settings, mask = self.settings, batch.sequences.response_mask
        estimator = settings.kl.estimator
        # With a single step the ratio is exactly 1, so no forward pass for the old log-probs is needed.
        multi_step = settings.epochs * settings.minibatches > 1
        old = policy.frozen_logprobs(batch.sequences, policy.model) if multi_step else None
        reference = None
        if multi_step or estimator != "exact":
            reference = policy.frozen_logprobs(batch.sequences, policy.kl_reference)
        penalties = torch.zeros_like(batch.behaviour_logprobs)
        if settings.kl.placement == "reward":
            assert reference is not None and estimator != "exact", "the exact KL can only be a loss term"
            # Behaviour log-probs are those of the sampling distribution, so no extra forward pass is needed.
            distance = kl_estimate(batch.behaviour_logprobs, reference, estimator=estimator)
            penalties = self.kl.coefficient * mask * distance
        if policy.entropy_bonus > 0:
            penalties = penalties - entropy_rewards(batch.behaviour_logprobs, mask, coefficient=policy.entropy_bonus)
        if batch.token_rewards is not None:
            penalties = penalties - batch.token_rewards
        advantages = self.advantages(batch, sequence_rewards, penalties)

        sums, steps, num_skipped = MetricSums(), Metrics(), 0.0
        if old is not None and reference is not None:
            sums.add(policy_metrics(old, reference, batch.behaviour_logprobs, mask), 1.0)
        minibatches: Iterable[torch.Tensor | None] = [None]  # all rows, in order
        if multi_step:
            minibatches = shuffled_minibatches(
                len(mask),
                epochs=settings.epochs,
                minibatches=settings.minibatches,
                seed=[policy.config.run.seed, iteration],
                device=mask.device,
            )
        for minibatch in minibatches:
            for part in policy.batching.micro_batches(batch.sequences, average=settings.loss_average, among=minibatch):
                sequences, behaviour = part.sequences(batch.sequences), part.of(batch.behaviour_logprobs)
                if estimator == "exact":
                    logprobs, anchor, distance = policy.logprobs_and_exact_kl(sequences)
                else:
                    assert reference is not None
                    logprobs, anchor = policy.logprobs(sequences), part.of(reference)
                    distance = kl_estimate(logprobs, anchor, estimator=estimator)
                before = logprobs.detach() if old is None else part.of(old)
                loss, metrics = self.loss(
                    logprobs,
                    before,
                    part.of(advantages),
                    distance,
                    sequences.response_mask,
                    max_tokens=policy.max_tokens,
                    importance_weights=policy.importance_weights(before, behaviour),
                )
                (loss * part.share).backward()
                if old is None:
                    metrics |= policy_metrics(logprobs, anchor, behaviour, sequences.response_mask)
                if estimator == "exact":
                    metrics["kl_exact"] = masked_average(distance.detach(), sequences.response_mask, average="token")
                sums.add({"loss": loss, "policy_loss": metrics.pop("policy_loss")}, part.share)
                sums.add(metrics, part.token_share)
            if text is not None:
                policy.text_backward(text, settings.demonstration_coefficient, sums, name="demonstration_loss")
            steps = policy.step(iteration)
            num_skipped += steps["skipped_steps"]
        totals = sums.means(policy.group) | steps | {"skipped_steps": num_skipped}
        totals["kl_coefficient"] = self.kl.coefficient
        totals["advantage_deviation"] = float(advantages[mask].std(correction=0))
        self.kl.observe(totals.get("kl_exact", totals["kl"]), num_samples=len(mask))
        return totals

    def loss(
        self,
        logprobs: torch.Tensor,
        old_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        distance: torch.Tensor,
        response_mask: torch.Tensor,
        *,
        max_tokens: int,
        importance_weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, TensorMetrics]:
        """Compute the configured loss of some rows and the metrics of its policy term.

        ``distance``: per-token KL to the reference. Shapes: [b, T] each -> scalar.
        """
        settings = self.settings
        if settings.clip_range is None:
            loss, metrics = reinforce_loss(
                logprobs,
                advantages,
                response_mask,
                average=settings.loss_average,
                max_tokens=max_tokens,
                importance_weights=importance_weights,
            )
        else:
            loss, metrics = ppo_policy_loss(
                logprobs,
                old_logprobs,
                advantages,
                response_mask,
                clip_range=settings.clip_range,
                clip_range_high=settings.clip_range_high,
                average=settings.loss_average,
                max_tokens=max_tokens,
                ratio_level=settings.ratio,
                importance_weights=importance_weights,
            )
        if settings.kl.placement == "loss" and self.kl.coefficient > 0:
            penalty = masked_average(distance, response_mask, average=settings.loss_average, max_tokens=max_tokens)
            loss = loss + self.kl.coefficient * penalty
        return loss, metrics

    def advantages(self, batch: TrainBatch, sequence_rewards: torch.Tensor, penalties: torch.Tensor) -> torch.Tensor:
        """Compute advantages [B, T]: returns (or action values) minus the baselines, scaled.

        ``sequence_rewards``: [B]; ``penalties``: [B, T], subtracted from the reward at each token.
        """
        settings, mask, group_size = self.settings, batch.sequences.response_mask, batch.group_size
        totals = sequence_rewards - penalties.sum(1)
        if batch.action_values is not None:
            returns = batch.action_values + rewards_to_go(-penalties, mask, discount=settings.discount)
        elif settings.reward_to_go:
            rewards = at_the_end(sequence_rewards, mask) - penalties
            returns = rewards_to_go(rewards, mask, discount=settings.discount)
        else:
            returns = totals[:, None] * mask
        centred = self.centred(returns, totals, mask, group_size)
        if settings.credit == "token":
            assert batch.token_scores is not None, "credit=token needs token scores"
            num_read = mask.sum(1) if batch.num_read is None else batch.num_read
            past = past_scores(batch.token_scores, mask, num_read)
            # Centre before dividing; otherwise a response's own length would leak into its baseline through the others.
            centred = centred - self.centred(past, totals, mask, group_size) / other_lengths(num_read)
        scaled = scale_advantages(centred, mask, scale=settings.advantage_scale, group_size=group_size)
        limit = settings.advantage_clip
        return scaled if limit is None else scaled.clamp(-limit, limit)

    def centred(self, values: torch.Tensor, totals: torch.Tensor, mask: torch.Tensor, group_size: int) -> torch.Tensor:
        """Subtract the configured baseline of the values [B, T] or of the totals [B]; zero outside the mask."""
        settings = self.settings
        match settings.baseline:
            case "none":
                baseline = torch.zeros_like(totals)[:, None]
            case "leave_one_out":
                baseline = leave_one_out_baseline(totals, group_size=group_size)[:, None]
            case "group_mean":
                baseline = group_mean_baseline(totals, group_size=group_size)[:, None]
            case "batch_mean":
                baseline = batch_mean_baseline(values, mask)
            case "position_mean":
                baseline = position_mean_baseline(values, mask)
            case "moving_average":
                # The first batch uses its own mean, which biases one iteration.
                mean = float(totals.mean())
                past = mean if self.baseline is None else self.baseline
                baseline = torch.tensor(past)
                if math.isfinite(mean):
                    self.baseline = moving_average(self.baseline, mean, decay=settings.baseline_decay)
        return (values - baseline) * mask

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"baseline": self.baseline}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.baseline = state["baseline"]
