"""One update by REINFORCE (RLGAF, eq. 1-2): returns, a baseline, one step on the whole batch.

With a clip range it is GRPO's and GSPO's: several steps on one batch, each on PPO's clipped ratio, without a critic.
SeqGAN's policy gradient is the same update with Monte-Carlo action values in place of the reward-to-go.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

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
from rlgaf_ray.training.policy import (
    KLController,
    MetricSums,
    Policy,
    rollout_metrics,
)
from rlgaf_ray.types import Metrics, SequenceBatch, TrainBatch


class Reinforce(Algorithm):
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
        text: SequenceBatch | None = None,
    ) -> Metrics:
        """As ``Algorithm.update``; ``text``: demonstrations."""
        settings, mask = self.settings, batch.sequences.response_mask
        estimator = settings.kl.estimator
        # In one step the ratio to the policy before it is one, and no pass is needed to know that policy's log-probs.
        several = settings.epochs * settings.minibatches > 1
        old = policy.frozen_logprobs(batch.sequences, policy.model) if several else None
        reference = None
        if several or estimator != "exact":
            reference = policy.frozen_logprobs(batch.sequences, policy.kl_reference)
        penalties = torch.zeros_like(batch.behaviour_logprobs)
        if settings.kl.placement == "reward":
            assert reference is not None and estimator != "exact", "the exact KL is a term of the loss"
            # The engine's log-probs are those of the distribution that was sampled: no second pass is needed.
            distance = kl_estimate(batch.behaviour_logprobs, reference, estimator=estimator)
            penalties = self.kl.coefficient * mask * distance
        if policy.entropy_bonus > 0:
            penalties = penalties - entropy_rewards(batch.behaviour_logprobs, mask, coefficient=policy.entropy_bonus)
        if batch.token_rewards is not None:
            penalties = penalties - batch.token_rewards
        advantages = self.advantages(batch, sequence_rewards, penalties)

        sums, steps, num_skipped = MetricSums(), Metrics(), 0.0
        if old is not None and reference is not None:
            sums.add(rollout_metrics(old, reference, batch.behaviour_logprobs, mask), 1.0)
        minibatches: Iterable[torch.Tensor | None] = [None]  # all rows, in their order
        if several:
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
                    metrics |= rollout_metrics(logprobs, anchor, behaviour, sequences.response_mask)
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
        """The configured loss of some rows, and the metrics of its policy term.

        ``distance``: the KL to the reference at each token. Shapes: [b, T] each -> scalar.
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
        """[B, T]: returns (or action values) less the baselines, scaled.

        ``sequence_rewards``: [B]; ``penalties``: [B, T], taken from the reward at each token.
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
            assert batch.token_scores is not None, "the scores came without their tokens' parts"
            num_read = mask.sum(1) if batch.num_read is None else batch.num_read
            past = past_scores(batch.token_scores, mask, num_read)
            # Centred first: divided first, a response's own length would enter the others' baselines and come back.
            centred = centred - self.centred(past, totals, mask, group_size) / other_lengths(num_read)
        scaled = scale_advantages(centred, mask, scale=settings.advantage_scale, group_size=group_size)
        limit = settings.advantage_clip
        return scaled if limit is None else scaled.clamp(-limit, limit)

    def centred(self, values: torch.Tensor, totals: torch.Tensor, mask: torch.Tensor, group_size: int) -> torch.Tensor:
        """Values [B, T] less the configured baseline, which is of them or of the totals [B]; zero outside the mask."""
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
                # The first batch has no past: its own mean stands in, a bias of one iteration.
                mean = float(totals.mean())
                past = mean if self.baseline is None else self.baseline
                baseline = torch.tensor(past)
                if math.isfinite(mean):
                    self.baseline = moving_average(self.baseline, mean, decay=settings.baseline_decay)
        return (values - baseline) * mask

    def state_dict(self) -> dict[str, float | None]:
        return {"kl_coefficient": self.kl.coefficient, "baseline": self.baseline}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        coefficient = state["kl_coefficient"]
        assert coefficient is not None
        self.kl.coefficient, self.baseline = coefficient, state["baseline"]
