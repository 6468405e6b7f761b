"""PPO updates with InstructGPT's objective (RLGAF, eq. 3; Ouyang et al. 2022, eq. 2).

The discriminator, and thus the reward, is frozen during the epochs on one batch. Rewards are whitened by running
statistics before the KL penalty is subtracted. Only the critic trains in the first iterations, because the advantages
of an untrained critic would move the policy away from the reference without benefit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlgaf_ray.config.schema import Config
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.objectives.advantages import RunningStatistics, generalized_advantage_estimate, whiten
from rlgaf_ray.objectives.kl import kl_estimate
from rlgaf_ray.objectives.policy import ppo_policy_loss, ppo_value_loss
from rlgaf_ray.objectives.rewards import at_the_end, entropy_rewards
from rlgaf_ray.training.algorithm import Algorithm, TrainedNetwork
from rlgaf_ray.training.batching import shuffled_minibatches
from rlgaf_ray.training.distributed import prepare
from rlgaf_ray.training.optimizer import build_optimizer, optimizer_step, schedule_factor, skipped
from rlgaf_ray.training.policy import KLController, Policy
from rlgaf_ray.training.policy_metrics import MetricSums, policy_metrics
from rlgaf_ray.training.precision import autocast
from rlgaf_ray.types import Metrics, SequenceBatch, TrainBatch


class PPO(Algorithm):
    """Proximal policy optimisation with a learned critic."""

    def __init__(self, folder: Path, config: Config, policy: Policy, *, pad_token_id: int) -> None:
        self.settings = config.generator.ppo
        self.seed = config.run.seed
        self.num_iterations = config.run.iterations
        self.max_grad_norm = config.generator.max_grad_norm
        self.kl = KLController(self.settings.kl)
        self.statistics = RunningStatistics()
        self.critic = ScalarModel.load(
            folder,
            pooling="mean",
            pad_token_id=pad_token_id,
            seed=config.run.seed,
            trust_remote_code=config.model.trust_remote_code,
            device=policy.device,
        )
        torch.nn.init.zeros_(self.critic.network.score.weight)  # values start at zero, the mean of whitened rewards
        prepare(self.critic.network, config.learner, policy.group)
        optimizer = build_optimizer(
            self.critic.parameters(),
            learning_rate=self.settings.value_learning_rate,
            betas=config.generator.betas,
            weight_decay=config.generator.weight_decay,
        )
        self.trained_critic = TrainedNetwork(self.critic, optimizer)

    def update(
        self,
        policy: Policy,
        batch: TrainBatch,
        sequence_rewards: torch.Tensor,
        iteration: int,
        text: SequenceBatch | None,
    ) -> Metrics:
        """Run one update (see ``Algorithm.update``); ``text`` is the warm-up's text, for PPO-ptx."""
        settings, mask = self.settings, batch.sequences.response_mask
        old_logprobs = policy.frozen_logprobs(batch.sequences, policy.model)
        reference = policy.frozen_logprobs(batch.sequences, policy.kl_reference)
        old_values = policy.frozen_pass(batch.sequences, lambda part: self.values(policy, part))
        if settings.whiten_rewards:
            self.statistics.update(sequence_rewards)
            sequence_rewards = self.statistics.whiten(sequence_rewards)
        assert settings.kl.estimator != "exact", "the exact KL can only be a loss term"
        distance = kl_estimate(old_logprobs, reference, estimator=settings.kl.estimator)
        rewards = at_the_end(sequence_rewards, mask) - self.kl.coefficient * distance * mask
        if policy.entropy_bonus > 0:
            rewards = rewards + entropy_rewards(old_logprobs, mask, coefficient=policy.entropy_bonus)
        if batch.token_rewards is not None:
            rewards = rewards + batch.token_rewards
        advantages, returns = generalized_advantage_estimate(
            rewards, old_values, mask, discount=settings.discount, gae_lambda=settings.gae_lambda
        )
        if settings.whiten_advantages:
            advantages = whiten(advantages, mask)

        sums, steps, num_skipped = MetricSums(), Metrics(), 0.0
        sums.add(policy_metrics(old_logprobs, reference, batch.behaviour_logprobs, mask), 1.0)
        policy_moves = iteration >= settings.critic_warmup_iterations
        learning_rate = self.learning_rate(iteration)
        for minibatch in shuffled_minibatches(
            len(mask),
            epochs=settings.epochs,
            minibatches=settings.minibatches,
            seed=[self.seed, iteration],
            device=mask.device,
        ):
            for part in policy.batching.micro_batches(batch.sequences, average=settings.loss_average, among=minibatch):
                sequences = part.sequences(batch.sequences)
                value_loss, value_metrics = ppo_value_loss(
                    self.values(policy, sequences),
                    part.of(old_values),
                    part.of(returns),
                    sequences.response_mask,
                    value_clip_range=settings.value_clip_range,
                    average=settings.loss_average,
                    max_tokens=policy.max_tokens,
                )
                (settings.value_coefficient * value_loss * part.share).backward()
                sums.add({"value_loss": value_metrics.pop("value_loss")}, part.share)
                sums.add(value_metrics, part.token_share)
                if policy_moves:
                    logprobs = policy.logprobs(sequences)
                    loss, metrics = ppo_policy_loss(
                        logprobs,
                        part.of(old_logprobs),
                        part.of(advantages),
                        sequences.response_mask,
                        clip_range=settings.clip_range,
                        clip_range_high=settings.clip_range_high,
                        average=settings.loss_average,
                        max_tokens=policy.max_tokens,
                        ratio_level=settings.ratio,
                        importance_weights=policy.importance_weights(
                            part.of(old_logprobs), part.of(batch.behaviour_logprobs)
                        ),
                    )
                    (loss * part.share).backward()
                    sums.add({"loss": loss, "policy_loss": metrics.pop("policy_loss")}, part.share)
                    sums.add(metrics, part.token_share)
            if policy_moves and text is not None:
                policy.text_backward(text, settings.pretraining_coefficient, sums, name="pretraining_loss")
            steps["critic_grad_norm"] = optimizer_step(
                self.trained_critic.optimizer,
                self.critic.parameters(),
                learning_rate=learning_rate,
                max_grad_norm=self.max_grad_norm,
                group=policy.group,
            )
            num_skipped += skipped(steps["critic_grad_norm"])
            if policy_moves:
                steps |= policy.step(iteration)
                num_skipped += steps["skipped_steps"]
        totals = sums.means(policy.group) | steps | {"skipped_steps": num_skipped}
        totals["kl_coefficient"] = self.kl.coefficient
        totals["critic_learning_rate"] = learning_rate
        totals["advantage_deviation"] = float(advantages[mask].std(correction=0))
        if policy_moves:  # during critic warm-up the coefficient has no effect
            self.kl.observe(totals["kl"], num_samples=len(mask))
        return totals

    def learning_rate(self, iteration: int) -> float:
        """Return the critic's learning rate at this iteration."""
        factor = schedule_factor(
            iteration,
            num_steps=self.num_iterations,
            num_warmup_steps=0,
            schedule=self.settings.value_learning_rate_schedule,
        )
        return self.settings.value_learning_rate * self.trained_critic.learning_rate_factor * factor

    def values(self, policy: Policy, sequences: SequenceBatch) -> torch.Tensor:
        """Compute V(x, y_<t), the value of the state before token t is sampled, at position t: float32 [B, T]."""
        with autocast(policy.dtype, policy.device):
            scores = self.critic.token_scores(sequences)
        return torch.nn.functional.pad(scores[:, :-1], (1, 0)) * sequences.response_mask

    def networks(self) -> Mapping[str, TrainedNetwork]:
        return {"critic": self.trained_critic}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"reward_statistics": self.statistics.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.statistics.load_state_dict(state["reward_statistics"])
