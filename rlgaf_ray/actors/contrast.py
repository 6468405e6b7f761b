"""Sample the base model (before SFT) for additional negatives of the discriminator.

Trained against SFT samples alone, the discriminator learns the artifacts of generated text: SFT has already matched
most of the content of the demonstrations. Base-model samples still differ in content, and need no label. With both as
negatives, base samples weighted by w, the optimal discriminator is log p_real (1 + w) / (p_policy + w p_base).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.storage import writing
from rlgaf_ray.engines.build import sampling_settings
from rlgaf_ray.engines.seeds import rollout_seed
from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.types import Demonstration, Prompt, SamplingSettings

FILE = "contrast.npz"
BATCH = 64  # prompts per generate call


def contrast_sampling(config: Config) -> SamplingSettings:
    """Return the rollouts' sampling settings with ``discriminator.contrast_samples`` responses per prompt."""
    return sampling_settings(config, samples_per_prompt=config.discriminator.contrast_samples)


def sample_contrast(
    source: str | Path, prompts: list[np.ndarray], config: Config, *, seed: int, device: str = "cpu"
) -> list[np.ndarray]:
    """Sample responses (int32 token ids) to each prompt, in the order of the prompts."""
    sampling = contrast_sampling(config)
    per_prompt = sampling.samples_per_prompt
    engine = TransformersEngine(
        source, dtype=config.model.dtype, device=device, trust_remote_code=config.model.trust_remote_code
    )
    responses: list[np.ndarray] = []
    for start in range(0, len(prompts), BATCH):
        part = [Prompt(row, ids) for row, ids in enumerate(prompts[start : start + BATCH], start)]
        seeds = [rollout_seed(seed, 0, start * per_prompt + row) for row in range(len(part) * per_prompt)]
        responses += [rollout.response_ids for rollout in engine.generate(part, sampling, seeds=seeds)]
    engine.close()
    return responses


def save_contrast(responses: list[np.ndarray], folder: Path) -> None:
    """Write the responses to ``folder`` as one flat array of token ids and their lengths."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / FILE, token_ids=np.concatenate(responses), lengths=np.array([len(ids) for ids in responses]))


def load_contrast(folder: Path, demonstrations: list[Demonstration]) -> list[Demonstration]:
    """Load the saved responses and pair each with its prompt; every demonstration's prompt has the same number."""
    with np.load(folder / FILE, allow_pickle=False) as stored:
        responses = np.split(stored["token_ids"], np.cumsum(stored["lengths"])[:-1])
    per_prompt, remainder = divmod(len(responses), len(demonstrations))
    assert not remainder, f"{folder} was sampled for other demonstrations"
    return [Demonstration(demonstrations[row // per_prompt].prompt_ids, ids) for row, ids in enumerate(responses)]
