"""The policy with its frozen references and the operations shared by all algorithms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from rlgaf_ray.config.algorithm import GumbelKLSettings, KLSettings, PreferenceKLSettings
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.collate import collate_sequences, num_tokens
from rlgaf_ray.models.families import check_output_layer
from rlgaf_ray.models.generator import (
    chunked_policy_logprobs_and_kl,
    load_generator,
    policy_logprobs,
    predicted_logprobs,
    sampled_logprobs,
)
from rlgaf_ray.models.lora import add_adapters, frozen_start
from rlgaf_ray.models.vocabulary import masked_token_ids
from rlgaf_ray.objectives.kl import adaptive_kl_coefficient, exact_kl
from rlgaf_ray.objectives.policy import language_model_loss, truncated_importance_weights
from rlgaf_ray.training.averaging import MovingAverage
from rlgaf_ray.training.batching import Batching
from rlgaf_ray.training.distributed import SINGLE_PROCESS, Group, full_tensor, prepare
from rlgaf_ray.training.optimizer import build_optimizer, optimizer_step, schedule_factor, skipped
from rlgaf_ray.training.policy_metrics import MetricSums, policy_metrics
from rlgaf_ray.training.precision import autocast, resolve_precision
from rlgaf_ray.types import Demonstration, Metrics, PolicyNetwork, Rollout, SequenceBatch, TrainBatch


class Policy:
    """The trained network, its optimiser and averages, and its frozen references.

    ``reference`` is the SFT model, from which training starts. ``base`` is the model before SFT if the config needs it,
    otherwise the SFT model. ``kl_reference`` is the one selected by ``kl.reference``.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Config,
        *,
        device: torch.device,
        group: Group = SINGLE_PROCESS,
        base_folder: str | Path | None = None,
    ) -> None:
        """Load the networks. ``base_folder``: the model before SFT, loaded only if needed; None if there was no SFT."""
        self.config = config
        self.device = device
        self.group = group
        self.batching = Batching.configured(config.learner, group)
        self.chunk_tokens = config.learner.logprob_chunk_tokens
        self.dtype = resolve_precision(config.learner.precision, device)
        self.entropy_bonus = config.generator.entropy_bonus
        self.max_tokens = config.task.response_tokens
        self.model = self.load(folder, frozen=False)
        add_adapters(self.model, config.model.lora, seed=config.run.seed)
        self.masked_token_ids = masked_token_ids(self.model.config, stop_at_end_of_text=config.stop_at_end_of_text)
        offload = config.learner.fsdp.offload_reference
        self.reference = frozen_start(self.model, lambda: self.load(folder, offload=offload))
        self.base = self.reference
        if config.needs_base_model:
            assert base_folder is not None, "base_folder is required after an SFT stage"
            self.base = self.load(base_folder, offload=offload)
        self.kl_reference = self.base if config.generator.active.kl.reference == "base" else self.reference
        self.optimizer = build_optimizer(
            self.model.parameters(),
            learning_rate=config.generator.learning_rate,
            betas=config.generator.betas,
            weight_decay=config.generator.weight_decay,
        )
        self.averages: dict[PolicyNetwork, MovingAverage] = {}
        if config.generator.average_decay > 0:
            decay = config.generator.average_decay
            self.averages["average"] = MovingAverage(self.load(folder), rate=decay, debiased=True)
        if (rate := config.generator.active.rollout_average) > 0:
            self.averages["rollout_policy"] = MovingAverage(self.load(folder), rate=rate, debiased=False)

    def load(self, folder: str | Path, *, frozen: bool = True, offload: bool = False) -> PreTrainedModel:
        """Load a network from a folder, on this device and sharded like the policy; ``offload`` as in ``prepare``."""
        network = load_generator(folder, trust_remote_code=self.config.model.trust_remote_code, device=self.device)
        if self.chunk_tokens is not None:
            check_output_layer(network)
        network.requires_grad_(not frozen)
        prepare(network, self.config.learner, self.group, frozen=frozen, offload=offload)
        return network

    def network(self, name: PolicyNetwork | Literal["reference"]) -> PreTrainedModel:
        """Return the policy, its reference or an average by name."""
        match name:
            case "policy":
                return self.model
            case "reference":
                return self.reference
        assert name in self.averages, f"{name} is not enabled in the config"
        return self.averages[name].network

    def logprobs(self, sequences: SequenceBatch, model: PreTrainedModel | None = None) -> torch.Tensor:
        """Compute log-probs, float32 [B, T], under the engine's sampling distribution."""
        with autocast(self.dtype, self.device):
            return policy_logprobs(
                model or self.model,
                sequences,
                temperature=self.config.rollout.temperature,
                masked_token_ids=self.masked_token_ids,
                chunk_tokens=self.chunk_tokens,
            )

    def distributions(self, sequences: SequenceBatch, model: PreTrainedModel | None = None) -> torch.Tensor:
        """Compute log-probs of the full vocabulary, float32 [B, T - first response position, V]."""
        with autocast(self.dtype, self.device):
            return predicted_logprobs(
                model or self.model,
                sequences,
                temperature=self.config.rollout.temperature,
                masked_token_ids=self.masked_token_ids,
            )

    def frozen_logprobs(self, sequences: SequenceBatch, model: PreTrainedModel) -> torch.Tensor:
        """Compute log-probs [B, T] without gradients, split across ranks."""
        return self.frozen_pass(sequences, lambda part: self.logprobs(part, model))

    @torch.no_grad()
    def frozen_pass(self, sequences: SequenceBatch, values: Callable[[SequenceBatch], torch.Tensor]) -> torch.Tensor:
        """Apply ``values`` (-> [b, t]) to all rows without gradients, split across ranks: [B, T] on every rank."""
        result: torch.Tensor | None = None
        for micro_batch in self.batching.micro_batches(sequences, average="sequence"):
            part = values(micro_batch.sequences(sequences))
            if result is None:
                result = torch.zeros(sequences.token_ids.shape, dtype=part.dtype, device=part.device)
            if micro_batch.share > 0:
                result[micro_batch.rows, : micro_batch.width] = part
        assert result is not None, "the batch is empty"
        return self.group.sum(result)

    def logprobs_and_exact_kl(self, sequences: SequenceBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute log-probs of policy and ``kl_reference``, and KL(policy || reference) over the full vocabulary.

        Each is float32 [B, T], zero outside the response; the reference has no gradient. Memory: about five float32
        tensors of response tokens x vocabulary, limited by ``learner.micro_batch_size`` or
        ``learner.logprob_chunk_tokens``.
        """
        if self.chunk_tokens is not None:
            with autocast(self.dtype, self.device):
                return chunked_policy_logprobs_and_kl(
                    self.model,
                    self.kl_reference,
                    sequences,
                    temperature=self.config.rollout.temperature,
                    masked_token_ids=self.masked_token_ids,
                    chunk_tokens=self.chunk_tokens,
                )
        distributions = self.distributions(sequences)
        with torch.no_grad():
            anchors = self.distributions(sequences, self.kl_reference)
        logprobs, reference = (
            sampled_logprobs(each, sequences, masked_token_ids=self.masked_token_ids)
            for each in (distributions, anchors)
        )
        start = sequences.response_mask.shape[1] - distributions.shape[1]
        distance = torch.nn.functional.pad(exact_kl(distributions, anchors), (start, 0))
        return logprobs, reference, distance.masked_fill(~sequences.response_mask, 0.0)

    def policy_metrics(self, batch: TrainBatch) -> dict[str, torch.Tensor]:
        """Compute ``policy_metrics`` of the current policy with two forward passes."""
        own, reference = (self.frozen_logprobs(batch.sequences, model) for model in (self.model, self.kl_reference))
        return policy_metrics(own, reference, batch.behaviour_logprobs, batch.sequences.response_mask)

    def text_backward(
        self,
        text: SequenceBatch,
        coefficient: float,
        sums: MetricSums,
        *,
        name: str,
        among: torch.Tensor | None = None,
    ) -> None:
        """Add the gradient of ``coefficient`` times the loss on real text, and the loss to ``sums`` under ``name``.

        ``among``: the rows of the text to use, by default all.
        """
        for part in self.batching.micro_batches(text, average="token", among=among):
            sequences = part.sequences(text)
            # A causal model's tokens do not attend to padding on their right, and attention without a mask is faster.
            sequences = replace(sequences, attention_mask=torch.ones_like(sequences.attention_mask))
            with autocast(self.dtype, self.device):
                # Real text: no masked tokens, temperature 1.
                logprobs = policy_logprobs(self.model, sequences, chunk_tokens=self.chunk_tokens)
            loss = language_model_loss(logprobs, sequences.response_mask)
            (coefficient * loss * part.share).backward()
            sums.add({name: loss}, part.share)

    def importance_weights(self, logprobs: torch.Tensor, behaviour_logprobs: torch.Tensor) -> torch.Tensor | None:
        """Compute truncated importance weights [B, T], or None if disabled."""
        cap, mode = self.config.importance_weight_cap, self.config.generator.importance_weight_mode
        if cap is None or mode == "none":
            return None
        return truncated_importance_weights(logprobs, behaviour_logprobs, cap=cap, bound=mode)

    def step(self, iteration: int) -> Metrics:
        """Take an optimiser step, update the averages and return the step's metrics."""
        settings = self.config.generator
        learning_rate = settings.learning_rate * schedule_factor(
            iteration,
            num_steps=self.config.run.iterations,
            num_warmup_steps=settings.learning_rate_warmup,
            schedule=settings.learning_rate_schedule,
        )
        grad_norm = optimizer_step(
            self.optimizer,
            self.model.parameters(),
            learning_rate=learning_rate,
            max_grad_norm=settings.max_grad_norm,
            group=self.group,
        )
        if not skipped(grad_norm):
            for average in self.averages.values():
                average.update(self.model)
        weights = [weight.detach() for weight in self.model.parameters()]
        weight_norm = float(full_tensor(torch.nn.utils.get_total_norm(weights)))
        return {
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "weight_norm": weight_norm,
            "skipped_steps": skipped(grad_norm),
        }


@torch.no_grad()
def mean_nll(
    model: PreTrainedModel,
    items: Sequence[Demonstration | Rollout],
    *,
    pad_token_id: int,
    batching: Batching,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    device: torch.device | None = None,
) -> float:
    """Compute the mean negative log-likelihood of the responses in nats per token, in float32, unmasked."""
    total, count = 0.0, 0
    for rows in batching.plan([num_tokens(item) for item in items]):
        sequences = collate_sequences([items[row] for row in rows or [0]], pad_token_id)
        sequences = sequences.to(device or model.device)  # offloaded weights are on CPU, hence ``device``
        logprobs = policy_logprobs(model, sequences, temperature=temperature, chunk_tokens=chunk_tokens)
        if rows:
            total -= float(logprobs.sum())
            count += int(sequences.response_mask.sum())
    total, num_response_tokens = batching.group.sum_numbers([total, count])
    return total / num_response_tokens


class KLController:
    """The KL coefficient: fixed, or adapted to a target KL (Ziegler et al. 2019)."""

    def __init__(self, settings: KLSettings | GumbelKLSettings | PreferenceKLSettings) -> None:
        self.settings = settings
        self.coefficient = settings.coefficient

    def observe(self, kl: float, num_samples: int) -> None:
        """Adapt the coefficient to an observed KL. A non-finite KL is ignored; the guard sees it in the metrics."""
        if self.settings.target is not None and math.isfinite(kl):
            self.coefficient = adaptive_kl_coefficient(
                self.coefficient,
                observed_kl=kl,
                target=self.settings.target,
                num_samples=num_samples,
                horizon=self.settings.horizon,
            )

    def state_dict(self) -> dict[str, float]:
        """Return the current coefficient, and the configured one that it began with."""
        return {"coefficient": self.coefficient, "configured": self.settings.coefficient}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore an adapted or raised coefficient, unless the configured one has changed since."""
        if state["configured"] == self.settings.coefficient:
            self.coefficient = state["coefficient"]
