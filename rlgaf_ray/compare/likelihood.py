"""Log-likelihoods of full responses under a model that is not trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rlgaf_ray.config import Config
from rlgaf_ray.data.collate import collate_sequences, num_tokens
from rlgaf_ray.data.lengths import Response
from rlgaf_ray.models.generator import load_generator, policy_logprobs
from rlgaf_ray.training.batching import Batching
from rlgaf_ray.training.distributed import SINGLE_PROCESS


class Likelihood:
    """Computes log p(response | prompt) in nats, summed over the response's tokens, at temperature 1.

    ``generator``: a Hugging Face folder.
    """

    def __init__(self, generator: Path, config: Config, *, pad_token_id: int, device: str = "cpu") -> None:
        self.pad_token_id = pad_token_id
        self.device = torch.device(device)
        self.batching = Batching.configured(config.learner, SINGLE_PROCESS).without_gradients
        trusted = config.model.trust_remote_code
        self.model = load_generator(generator, device=self.device, trust_remote_code=trusted).eval()

    @torch.no_grad()
    def __call__(self, items: Sequence[Response]) -> np.ndarray:
        """Return float64 [N], in the order of ``items``."""
        found = np.zeros(len(items))
        for rows in self.batching.by_length([num_tokens(item) for item in items]):
            sequences = collate_sequences([items[row] for row in rows], self.pad_token_id).to(self.device)
            found[rows] = policy_logprobs(self.model, sequences).sum(1).double().cpu().numpy()
        return found
