"""Gumbel-softmax updates (RLGAF, section 2.2): back-propagate through the discriminator and soft tokens.

Loss: binary cross-entropy of the discriminator's logit on the soft response against the label 1 (section 2, "Training
the generator"), plus the KL to the frozen reference::

    mean_i [ softplus(-D(x_i, y_i)) + beta * mean_t KL(pi(. | x_i, y_i<t) || pi_ref(. | x_i, y_i<t)) ]

``autoregressive``: y is sampled by the learner, and each soft token is the input of the next step (the paper's method).
``conditional``: y is the rollout, and the noise is sampled conditioned on it. One forward pass over the rollout's
tokens gives the gradient at every position, which is faster but ignores a token's effect on later tokens.
The KL is exact over the vocabulary; in both modes its gradient treats the prefixes as fixed.

Memory for a micro-batch of b rows, R response tokens, P prompt tokens, L layers of width W and V tokens, float32, in
addition to the activations of generator and discriminator: ``autoregressive`` keeps 4 b R V bytes of perturbed logits
and, because each step has its own copy of the KV cache, about 8 b L W R (P + R / 2) bytes of keys and values. The KL's
separate pass, after that graph is freed, and the single pass of ``conditional`` take about 8 x 4 b R V bytes. b is
``learner.micro_batch_size``; it does not affect the update, because the noise is seeded per row. Measurements:
docs/benchmarks.md.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import softplus
from transformers import PreTrainedModel

from rlgaf_ray.config.schema import Config
from rlgaf_ray.engines.seeds import rollout_seed
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generator import embedding_matrix, end_of_text_ids
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.models.straight_through import (
    AlignedBatch,
    align,
    response_logits,
    sample_straight_through,
    soft_logits,
)
from rlgaf_ray.objectives.gumbel import annealed_temperature, conditional_gumbel_perturbed, straight_through_embeddings
from rlgaf_ray.objectives.kl import exact_entropy, exact_kl
from rlgaf_ray.objectives.policy import TensorMetrics, masked_average
from rlgaf_ray.training.algorithm import Algorithm
from rlgaf_ray.training.policy import KLController, Policy
from rlgaf_ray.training.policy_metrics import MetricSums
from rlgaf_ray.training.precision import autocast
from rlgaf_ray.types import Metrics, SequenceBatch, TrainBatch, WeightUpdate
from rlgaf_ray.weights.state import check_shapes, num_bytes, to_tensors


class GumbelSoftmax(Algorithm):
    """Back-propagates through a frozen copy of the discriminator; call ``load_discriminator`` before the first update.

    The copy is not checkpointed; it is pushed again when a run resumes.
    """

    def __init__(self, folder: Path, config: Config, policy: Policy, *, pad_token_id: int) -> None:
        self.settings = config.generator.gumbel
        self.config = config
        self.kl = KLController(self.settings.kl)
        self.discriminator = ScalarModel.load(
            folder,
            pooling=config.discriminator.pooling,
            pad_token_id=pad_token_id,
            seed=config.run.seed,
            trust_remote_code=config.model.trust_remote_code,
            device=policy.device,
        ).requires_grad_(False)
        self.shapes = {name: tuple(value.shape) for name, value in self.discriminator.network.state_dict().items()}
        self.end_of_text_ids = end_of_text_ids(policy.model.config) if config.stop_at_end_of_text else []
        check_soft_tokens(policy.model)

    def load_discriminator(self, update: WeightUpdate) -> Metrics:
        """Copy the discriminator's weights; the update's version counts discriminator updates."""
        check_shapes(update, self.shapes)
        self.discriminator.network.load_state_dict(to_tensors(update))
        return {
            "weights/discriminator_version": float(update.policy_version),
            "weights/discriminator_megabytes": num_bytes(update) / 1e6,
        }

    def update(
        self, policy: Policy, batch: TrainBatch, sequence_rewards: Tensor, iteration: int, text: SequenceBatch | None
    ) -> Metrics:
        """Run one update (see ``Algorithm.update``) by the discriminator copy; rewards and text are ignored."""
        aligned = align(batch.sequences)
        temperature = annealed_temperature(
            iteration,
            num_steps=self.config.run.iterations,
            start=self.settings.temperature_start,
            end=self.settings.temperature_end,
        )
        sums = MetricSums()
        for part in policy.batching.micro_batches(batch.sequences, average="sequence"):
            index, share = part.rows, part.share
            rows, noise = aligned.rows(index), self.noise(index, iteration)
            match self.settings.mode:
                case "autoregressive":
                    metrics = self.autoregressive(policy, rows, noise, temperature, share)
                case "conditional":
                    metrics = self.conditional(policy, rows, noise, temperature, share)
                    gap = metrics.pop("logits") - batch.scores[index]
                    metrics["score_gap"] = gap.abs().mean()
            sums.add(metrics, share)
        totals = sums.means()
        totals["loss"] = totals["adversarial_loss"] + self.kl.coefficient * totals["kl"]
        totals |= policy.step(iteration)
        totals |= {"kl_coefficient": self.kl.coefficient, "relaxation_temperature": temperature}
        self.kl.observe(totals["kl"], num_samples=len(aligned.prompt_ids))
        return totals

    def noise(self, index: Tensor, iteration: int) -> list[torch.Generator]:
        """Return a generator per row, seeded by run seed, iteration and row only."""
        seed = self.config.run.seed
        return [  # negative indices, because rollouts use those from 0
            torch.Generator(index.device).manual_seed(rollout_seed(seed, iteration, -1 - row)) for row in index.tolist()
        ]

    def autoregressive(
        self, policy: Policy, rows: AlignedBatch, noise: list[torch.Generator], temperature: float, share: float
    ) -> TensorMetrics:
        """Add ``share`` of the gradient on responses sampled by the learner."""
        with autocast(policy.dtype, policy.device):
            sampled, read = sample_straight_through(
                policy.model,
                rows,
                self.discriminator.embedding,
                num_tokens=self.config.task.response_tokens,
                relaxation_temperature=temperature,
                temperature=self.config.rollout.temperature,
                masked_token_ids=policy.masked_token_ids,
                end_of_text_ids=self.end_of_text_ids,
                generator=noise,
            )
            logits = soft_logits(self.discriminator, sampled, read)
        loss = softplus(-logits).mean()
        (loss * share).backward()
        with torch.set_grad_enabled(self.kl.coefficient > 0):
            distance, metrics = self.distance(policy, sampled, self.policy_logits(policy, sampled))
        if self.kl.coefficient > 0:
            (self.kl.coefficient * distance * share).backward()
        lengths = sampled.response_mask.sum(1).float().mean()
        return {
            **metrics,
            "adversarial_loss": loss.detach(),
            "soft_logit": logits.detach().mean(),
            "response_tokens": lengths,
        }

    def conditional(
        self, policy: Policy, rows: AlignedBatch, noise: list[torch.Generator], temperature: float, share: float
    ) -> TensorMetrics:
        """Add ``share`` of the gradient on the rollouts. The metrics include the logits [B]."""
        response = self.policy_logits(policy, rows)
        perturbed = conditional_gumbel_perturbed(response, rows.response_ids, generator=noise)
        _, (read,) = straight_through_embeddings(perturbed, (self.discriminator.embedding,), temperature=temperature)
        with autocast(policy.dtype, policy.device):
            logits = soft_logits(self.discriminator, rows, read)
        loss = softplus(-logits).mean()
        distance, metrics = self.distance(policy, rows, response)
        ((loss + self.kl.coefficient * distance) * share).backward()
        return {
            **metrics,
            "adversarial_loss": loss.detach(),
            "soft_logit": logits.detach().mean(),
            "response_tokens": rows.response_mask.sum(1).float().mean(),
            "logits": logits.detach(),
        }

    def policy_logits(self, policy: Policy, rows: AlignedBatch, *, reference: bool = False) -> Tensor:
        """Compute the response logits of the policy, or of its KL reference."""
        with autocast(policy.dtype, policy.device):
            return response_logits(
                policy.kl_reference if reference else policy.model,
                rows,
                temperature=self.config.rollout.temperature,
                masked_token_ids=policy.masked_token_ids,
            )

    def distance(self, policy: Policy, rows: AlignedBatch, response: Tensor) -> tuple[Tensor, TensorMetrics]:
        """Compute the exact KL, averaged over tokens, then rows; ``response``: the policy's logits."""
        logprobs = response.log_softmax(-1, dtype=torch.float32)
        with torch.no_grad():
            reference = self.policy_logits(policy, rows, reference=True).log_softmax(-1, dtype=torch.float32)
            entropy = masked_average(exact_entropy(logprobs), rows.response_mask, average="sequence")
        distance = masked_average(exact_kl(logprobs, reference), rows.response_mask, average="sequence")
        return distance, {"kl": distance.detach(), "entropy": entropy}


@torch.no_grad()
def check_soft_tokens(model: PreTrainedModel) -> None:
    """Reject a model that needs token ids in addition to their embeddings."""
    token_ids = torch.tensor([[1, 2]], device=model.device)
    plain = model(input_ids=token_ids, use_cache=False).logits
    try:
        soft = model(inputs_embeds=embedding_matrix(model)[token_ids], use_cache=False).logits
        supported = torch.allclose(soft, plain, rtol=1e-4, atol=1e-4)
    except Exception:  # raised by a model that requires the ids
        supported = False
    if not supported:
        raise UserError(
            f"generator.algorithm=gumbel feeds mixtures of embeddings, but {type(model).__name__} also needs token "
            "ids: choose another model, or set generator.algorithm=reinforce"
        )
