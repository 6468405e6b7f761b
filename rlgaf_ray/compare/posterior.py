"""The SFT model as its own judge: how well a response identifies its prompt, without a discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from rlgaf_ray.compare.budget import posterior_prompts
from rlgaf_ray.compare.likelihood import Likelihood
from rlgaf_ray.config import Config
from rlgaf_ray.config.discriminator import BatchNeeds
from rlgaf_ray.data.lengths import Response
from rlgaf_ray.data.storage import Place
from rlgaf_ray.data.task import Task
from rlgaf_ray.training.discriminator import scores_at_the_end
from rlgaf_ray.training.distributed import Group
from rlgaf_ray.types import Demonstration, Metrics, WeightUpdate


class Posterior:
    """Scores a response by the posterior log-odds of its prompt x_0 under the SFT model, with equal priors (InfoNCE)::

        log p(y | x_0) - log sum_k p(y | x_k),  k = 1 ... K

    It is a ``Discriminator`` that is never updated. Like a discriminator's logit the score is unbounded, and its
    log-sigmoid is the log-posterior. The K other prompts (``Task.negative_prompts``) are ``compare.posterior_prompts``,
    by default as many as in SFT's contrastive term, or all if there are fewer. They are sampled without replacement and
    are the same for all responses to a prompt; ``run.seed`` and the prompt determine them.
    """

    def __init__(
        self, generator: Path, task: Task, config: Config, *, pad_token_id: int, device: str, group: Group
    ) -> None:
        self.group = group
        self.task = task
        self.seed = config.run.seed
        self.num_prompts = posterior_prompts(config)
        self.likelihood = Likelihood(generator, config, pad_token_id=pad_token_id, device=device)

    @property
    def needs(self) -> BatchNeeds:
        return BatchNeeds()

    def token_scores(self, items: Sequence[Response]) -> tuple[np.ndarray, int]:
        """Return the scores, each at its response's last token, and version 0."""
        prompts = {item.prompt_ids.tobytes(): item.prompt_ids for item in items}
        others = {key: self._others(prompt) for key, prompt in prompts.items()}
        pairs = [
            Demonstration(prompt, item.response_ids)
            for item in items
            for prompt in (item.prompt_ids, *others[item.prompt_ids.tobytes()])
        ]
        likelihoods = self.likelihood(pairs)
        ends = np.cumsum([1 + len(others[item.prompt_ids.tobytes()]) for item in items])
        rows = np.split(likelihoods, ends[:-1])
        return scores_at_the_end(items, [float(row[0] - logsumexp(row[1:])) for row in rows]), 0

    def _others(self, prompt_ids: np.ndarray) -> list[np.ndarray]:
        others = self.task.negative_prompts(prompt_ids)
        generator = np.random.default_rng([self.seed, *prompt_ids.tolist()])
        chosen = generator.choice(len(others), size=min(self.num_prompts, len(others)), replace=False)
        return [others[row] for row in chosen]

    def update(
        self, real: Sequence[Demonstration], fake: Sequence[Response], contrast: Sequence[Demonstration] = ()
    ) -> Metrics:
        raise NotImplementedError("the SFT model's posterior is not trained")

    def weights(self) -> WeightUpdate | None:
        return None

    def adjust(self, *, learning_rate_factor: float, refresh: bool = False) -> None:
        """There is nothing to adjust."""

    def save(self, folder: Place) -> None:
        """There is no state beside the SFT model."""

    def load(self, folder: Place, *, version: int) -> None:
        """There is no state beside the SFT model."""
