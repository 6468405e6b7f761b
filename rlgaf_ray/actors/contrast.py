"""Samples of the base model as contrast: what a text is like before it has learned from the demonstrations.

Against the SFT model's own samples a discriminator learns what gives a model away, not what the demonstrations are
about: SFT has already moved most of that. Against the base model's samples the difference is still there, and needs no
label. With both as negatives the discriminator's optimum is log p_real (1 + w) / (p_policy + w p_base).
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
BATCH = 64  # prompts that are sampled together


def contrast_sampling(config: Config) -> SamplingSettings:
    """The rollouts' settings, with ``discriminator.contrast_samples`` responses to a prompt."""
    return sampling_settings(config, samples_per_prompt=config.discriminator.contrast_samples)


def sample_contrast(
    source: str | Path, prompts: list[np.ndarray], config: Config, *, seed: int, device: str = "cpu"
) -> list[np.ndarray]:
    """Responses to each prompt in the prompts' order, int32 token ids."""
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
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / FILE, token_ids=np.concatenate(responses), lengths=np.array([len(ids) for ids in responses]))


def load_contrast(folder: Path, demonstrations: list[Demonstration]) -> list[Demonstration]:
    """The saved responses, each with its prompt: equally many to the prompt of every demonstration."""
    with np.load(folder / FILE, allow_pickle=False) as stored:
        responses = np.split(stored["token_ids"], np.cumsum(stored["lengths"])[:-1])
    per_prompt, left = divmod(len(responses), len(demonstrations))
    assert not left, f"{folder} was sampled for other demonstrations"
    return [Demonstration(demonstrations[row // per_prompt].prompt_ids, ids) for row, ids in enumerate(responses)]
