"""The learner: updates the generator from scored rollouts, exports its weights, and checkpoints its state."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.collate import collate
from rlgaf_ray.data.handover import loads_from_storage, saves_to_storage
from rlgaf_ray.data.lengths import View
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generator import end_of_text_ids
from rlgaf_ray.models.lora import export_network, has_adapters, load_adapters, merged_state, save_adapters
from rlgaf_ray.objectives.policy import masked_average
from rlgaf_ray.objectives.rewards import base_logprob_rewards
from rlgaf_ray.training.algorithm import AlgorithmFactory
from rlgaf_ray.training.algorithms import configured_algorithm
from rlgaf_ray.training.distributed import SINGLE_PROCESS, Group, gather_state_dict, load_full_state_dict
from rlgaf_ray.training.optimizer import load_optimizer, save_optimizer
from rlgaf_ray.training.policy import Policy, mean_nll
from rlgaf_ray.training.rewards import RewardShaping
from rlgaf_ray.types import (
    Demonstration,
    Metrics,
    PolicyNetwork,
    Rollout,
    ScoredRollout,
    SequenceBatch,
    TextBlocks,
    TrainBatch,
    WeightUpdate,
)
from rlgaf_ray.weights.state import split_state, to_arrays

ALGORITHM_STATE = "algorithm.json"


class Learner:
    """Trains the generator; runs in-process in the local runner and inside Ray actors.

    Every rank of a group makes the same calls with the full batch and gets the same results.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Config,
        *,
        pad_token_id: int,
        device: str = "cpu",
        group: Group = SINGLE_PROCESS,
        base_folder: str | Path | None = None,
        new_algorithm: AlgorithmFactory = configured_algorithm,
    ) -> None:
        """Load the policy and its algorithm.

        ``folder``: the SFT model. ``base_folder``: the model before SFT, for configs with an SFT stage.
        """
        self.config = config
        self.pad_token_id = pad_token_id
        self.device = torch.device(device)
        self.group = group
        self.policy = Policy(folder, config, device=self.device, group=group, base_folder=base_folder)
        self.view = View.configured(config.discriminator, lambda: end_of_text_ids(self.policy.model.config))
        self.rewards = RewardShaping(config.reward)
        self.algorithm = new_algorithm(Path(folder), config, self.policy, pad_token_id=pad_token_id)
        self.discriminator_version: int | None = None  # of the algorithm's copy, if any

    def update(self, scored: Sequence[ScoredRollout], *, iteration: int, text: TextBlocks | None = None) -> Metrics:
        """Update the policy. ``text``: real text, if the algorithm requests it (``AlgorithmSettings.text``).

        Returns ``generator/*`` and ``reward/*`` metrics. ``generator/non_finite`` is 1 if a reward, the loss, a
        gradient or an updated weight is non-finite; a non-finite reward or gradient skips the step.
        """
        group_size = self.config.rollout.samples_per_prompt
        batch = collate(scored, self.pad_token_id, group_size, view=self.view).to(self.device)
        rewards, share = batch.rewards, self.config.reward.token_share
        assert rewards is not None, "the rollouts have no rewards"
        if share is not None and share != 1 and batch.token_scores is not None:
            parts = share * batch.token_scores if share else torch.zeros_like(batch.token_scores)
            batch = replace(batch, token_scores=parts)
        shared = {"reward/mean": float(rewards.mean()), "reward/deviation": float(rewards.std(correction=0))}
        if not rewards.isfinite().all():
            return shared | {"generator/non_finite": 1.0, "generator/skipped_steps": 1.0}
        rewards, batch, shaping_metrics = self.rewards(rewards, batch)
        batch, base_metrics = self._with_base_logprobs(batch)
        shared |= shaping_metrics | base_metrics
        text_batch = None if text is None else self._text_batch(text)
        if self.config.generator.active.needs_discriminator:
            version = self.discriminator_version
            assert all(item.discriminator_version == version for item in scored), (
                f"the scores are not from discriminator version {version}, the learner's copy"
            )
        metrics = self.algorithm.update(self.policy, batch, rewards, iteration, text_batch)
        finite = all(math.isfinite(value) for value in metrics.values())
        return (
            shared
            | {"generator/non_finite": float(not finite)}
            | {f"generator/{name}": value for name, value in metrics.items()}
        )

    def _with_base_logprobs(self, batch: TrainBatch) -> tuple[TrainBatch, Metrics]:
        """Add the per-token rewards of ``reward.base_logprob`` to the batch, if set."""
        coefficient, mask = self.config.reward.base_logprob, batch.sequences.response_mask
        if coefficient == 0:
            return batch, {}
        logprobs = self.policy.frozen_logprobs(batch.sequences, self.policy.base)
        batch = replace(batch, token_rewards=base_logprob_rewards(logprobs, mask, coefficient=coefficient))
        return batch, {"reward/base_logprob": float(masked_average(logprobs, mask, average="token"))}

    def _text_batch(self, blocks: TextBlocks) -> SequenceBatch:
        blocks = blocks.trimmed()
        learned = torch.from_numpy(blocks.learned)
        present = learned.flip(1).cumsum(1).flip(1) > 0
        return SequenceBatch(torch.from_numpy(blocks.token_ids).long(), present.long(), learned).to(self.device)

    def load_discriminator(self, update: WeightUpdate) -> Metrics:
        """Update the frozen discriminator copy that the algorithm back-propagates through."""
        metrics = self.algorithm.load_discriminator(update)
        self.discriminator_version = update.policy_version
        return metrics

    def weights(self, policy_version: int, *, network: PolicyNetwork = "policy") -> WeightUpdate:
        """Return every entry of the network's state dict, tied copies included; on CPU without copying."""
        return to_arrays(self.state(network), policy_version)

    def state(self, network: PolicyNetwork) -> Mapping[str, torch.Tensor]:
        """Return the tensors that an engine loads, with adapters merged; this rank's shards if sharded."""
        return merged_state(self.policy.network(network))

    def num_parts(self) -> int:
        """Return the number of chunks of ``weights_part``."""
        return len(self._parts("policy"))

    def weights_part(self, policy_version: int, part: int, *, network: PolicyNetwork = "policy") -> WeightUpdate | None:
        """Gather one chunk of ``weights``, a collective over all ranks; only rank 0 gets it, others get None.

        Processing chunk by chunk avoids a second copy of all weights in memory.
        """
        parts = self._parts(network)
        state = gather_state_dict(self.policy.network(network), self.group, parts[part])
        return None if state is None else to_arrays(state, policy_version, part=part, num_parts=len(parts))

    def _parts(self, network: PolicyNetwork) -> list[list[str]]:
        return split_state(self.policy.network(network), max_bytes=self.config.weights.bucket_mib * 2**20)

    def mean_nll(
        self, items: Sequence[Demonstration | Rollout], *, model: PolicyNetwork | Literal["reference"]
    ) -> float:
        """Compute the mean negative log-likelihood of the responses in nats per token, in float32, unmasked."""
        return mean_nll(
            self.policy.network(model),
            items,
            pad_token_id=self.pad_token_id,
            batching=self.policy.batching,
            chunk_tokens=self.policy.chunk_tokens,
            device=self.device,
        )

    def adjust(
        self, *, learning_rate_factor: float, kl_coefficient: float | None = None, refresh: bool = False
    ) -> None:
        """Scale the configured learning rates of policy and critic from now on.

        ``kl_coefficient``: replaces the current one. ``refresh``: reset the optimisers' moments.
        """
        settings = self.config.generator
        scaled = settings.model_copy(update={"learning_rate": settings.learning_rate * learning_rate_factor})
        self.policy.config = self.config.model_copy(update={"generator": scaled})
        for trained in self.algorithm.networks().values():
            trained.learning_rate_factor = learning_rate_factor
        if kl_coefficient is not None:
            self.algorithm.kl.coefficient = kl_coefficient
        if refresh:
            self.policy.optimizer.state.clear()
            for trained in self.algorithm.networks().values():
                trained.optimizer.state.clear()

    def export(self, folder: str | Path) -> None:
        """Write the generator as a Hugging Face folder without a tokenizer."""
        state = gather_state_dict(self.policy.model, self.group)
        if state is not None:
            export_network(self.policy.model, folder, state)

    @saves_to_storage
    def save(self, folder: Path) -> None:
        """Checkpoint the generator (or only its adapters), averages, optimiser, and the algorithm's networks and state.

        There is no random state, because seeds derive from the iteration. Called on every rank, written by rank 0. The
        files have full tensors, so a group of another size or strategy can load them.
        """
        if not has_adapters(self.policy.model):
            self.export(folder / "generator")
        elif self.group.first:
            save_adapters(self.policy.model, folder / "generator")
        save_optimizer(self.policy.optimizer, folder / "optimizer.safetensors", self.group)
        for name, trained in self.algorithm.networks().items():
            trained.save(folder / name, self.group)
        for name, average in self.policy.averages.items():
            average.save(folder / name, self.group)
        if not self.group.first:
            return
        state = {
            "algorithm": self.algorithm.state_dict(),
            "averages": {name: average.num_steps for name, average in self.policy.averages.items()},
            "rewards": self.rewards.statistics.state_dict(),
        }
        (folder / ALGORITHM_STATE).write_text(json.dumps(state), encoding="utf-8")

    @loads_from_storage
    def load(self, folder: Path) -> None:
        """Restore a checkpoint written by ``save``."""
        if has_adapters(self.policy.model):
            load_adapters(self.policy.model, folder / "generator")
        else:
            load_full_state_dict(self.policy.model, folder / "generator")
        load_optimizer(self.policy.optimizer, folder / "optimizer.safetensors")
        for name, trained in self.algorithm.networks().items():
            trained.load(folder / name)
        state = json.loads((folder / ALGORITHM_STATE).read_text(encoding="utf-8"))
        for name, average in self.policy.averages.items():
            if not (folder / name).is_dir():
                raise UserError(
                    f"{folder} has no moving average {name!r}: generator.average_decay and "
                    "generator.seqgan.rollout_policy_rate cannot be enabled in a resumed run"
                )
            average.load(folder / name, num_steps=state["averages"][name])
        self.algorithm.load_state_dict(state["algorithm"])
        if self.config.reward.whiten:
            self.rewards.statistics.load_state_dict(state["rewards"])
