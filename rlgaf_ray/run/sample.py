"""``rlgaf sample``: sample a prompt from a run's SFT model and its trained model, with the discriminator's scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rlgaf_ray.config import Config, load_config, with_values
from rlgaf_ray.config.rows import RowSettings
from rlgaf_ray.data.chat import ChatTemplate
from rlgaf_ray.data.encoder import Encoder
from rlgaf_ray.data.storage import Place
from rlgaf_ray.engines.base import RolloutEngine
from rlgaf_ray.engines.build import sampling_settings
from rlgaf_ray.engines.seeds import EVALUATION, rollout_seed
from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.text import decode
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.models.built_in import FOLDER
from rlgaf_ray.models.folder import read_config
from rlgaf_ray.models.generator import end_of_text_ids
from rlgaf_ray.models.tokenizer import load_tokenizer
from rlgaf_ray.report.places import opened
from rlgaf_ray.run.preparation import cache_folder
from rlgaf_ray.run.provenance import recorded_chats
from rlgaf_ray.training.discriminator import Discriminator, with_scores
from rlgaf_ray.training.distributed import SINGLE_PROCESS
from rlgaf_ray.training.fingerprint import folder_fingerprint
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import Prompt

SFT, TRAINED = "SFT", "adversarial"


@dataclass(frozen=True, slots=True)
class Sample:
    text: str
    score: float | None  # the discriminator's logit; None if the run exported no discriminator network


@dataclass(frozen=True)
class Sampler:
    """The models of a run by name, loaded in this process."""

    config: Config
    engines: Mapping[str, RolloutEngine]
    discriminator: Discriminator | None
    tokenizer: PreTrainedTokenizerBase
    encode: Callable[[str], list[int]]

    def sample(
        self,
        prompt: str,
        *,
        num_samples: int = 4,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
    ) -> dict[str, list[Sample]]:
        """Sample responses from each model with the same seeds, as in training unless length or temperature is given.

        Raises ``UserError`` for a prompt that has no tokens or is too long.
        """
        token_ids = np.array(self.encode(prompt), np.int32)
        if not len(token_ids):
            raise UserError(f"the prompt {prompt!r} has no tokens: give some text")
        sampling = sampling_settings(self.config, samples_per_prompt=num_samples)
        sampling = replace(
            sampling,
            max_new_tokens=sampling.max_new_tokens if max_tokens is None else max_tokens,
            temperature=sampling.temperature if temperature is None else temperature,
        )
        seeds = [rollout_seed(seed, EVALUATION, index) for index in range(num_samples)]
        found = {}
        for name, engine in self.engines.items():
            rollouts = engine.generate([Prompt(0, token_ids)], sampling, seeds=seeds)
            scores: list[float | None] = [None] * num_samples
            if self.discriminator is not None:
                scored, _ = with_scores(rollouts, (), *self.discriminator.token_scores(rollouts))
                scores = [item.score for item in scored]
            texts = decode([rollout.response_ids for rollout in rollouts], self.tokenizer)
            found[name] = [Sample(text, score) for text, score in zip(texts, scores, strict=True)]
        return found


@contextmanager
def open_sampler(run: str, *, report: Callable[[str], None] = print) -> Iterator[Sampler]:
    """Open a run by its folder or URI. ``report`` receives a message for each model that cannot be loaded.

    Raises ``UserError`` if the run has exported no models.
    """
    with opened([run], None, subfolders=("generator", "discriminator")) as places:
        folder = places.folders[0]
        if not (folder / "config.yaml").is_file() or not (folder / "generator" / "config.json").is_file():
            raise UserError(f"{run} has no exported models (generator/): give the folder of a run that has ended")
        config = load_config(folder / "config.yaml")
        trusted = config.model.trust_remote_code
        tokenizer = load_tokenizer(folder / "generator", trust_remote_code=trusted)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        sft = sft_folder(config, places.places[0])
        if sft is None:
            report(
                f"the SFT model that {run} started with is not in {cache_folder(config) / 'warmups'}, so only the "
                f"trained model is sampled: restore that cache, or train the SFT model again with rlgaf evaluate {run}"
            )
        folders = ({} if sft is None else {SFT: sft}) | {TRAINED: folder / "generator"}
        engines = {
            name: TransformersEngine(each, dtype=config.model.dtype, device=device, trust_remote_code=trusted)
            for name, each in folders.items()
        }
        discriminator = None
        if (folder / "discriminator" / "config.json").is_file():
            discriminator = load_discriminator(folder / "discriminator", config, tokenizer, device)
        else:
            report(f"{run} exported no discriminator network, so the samples have no scores")
        yield Sampler(config, engines, discriminator, tokenizer, prompt_encoder(folder, config, tokenizer))


def load_discriminator(
    folder: Path, config: Config, tokenizer: PreTrainedTokenizerBase, device: str
) -> NeuralDiscriminator:
    """Load the exported network, whose adapters are merged, in this process."""
    alone = with_values(config, {"model.lora.rank": 0, "learner.strategy": "ddp", "learner.num_workers": 1})
    return NeuralDiscriminator(folder, alone, pad_token_id=tokenizer.pad_token_id, device=device, group=SINGLE_PROCESS)


def sft_folder(config: Config, run: Place) -> Path | None:
    """Find the run's SFT model in the cache by the fingerprint that its newest checkpoint records."""
    wanted = Checkpoints(run / "checkpoints", keep=1).provenance().get("sft_model")
    if wanted is None:
        return None
    cached = (cache_folder(config) / "warmups").glob("sft-*" if config.warmup.sft.steps else "generator-*")
    folders = [FOLDER, *(path for path in sorted(cached) if (path / "config.json").is_file())]
    return next((folder for folder in folders if folder_fingerprint(folder) == wanted), None)


def prompt_encoder(run: Path, config: Config, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """Return a function that encodes text like the run's prompts: as a user message, or plain with the BOS token."""
    ends = end_of_text_ids(read_config(run / "generator", trust_remote_code=config.model.trust_remote_code))
    encoder = Encoder(tokenizer, ends)
    if not recorded_chats(run):
        return lambda text: [*encoder.bos, *encoder([text])[0]]
    given = config.task.settings
    settings = given if isinstance(given, RowSettings) else RowSettings()
    now = datetime.fromisoformat(config.task.date) if config.task.date else datetime.now()
    template = ChatTemplate(tokenizer, settings, ends=ends, now=now)

    def rendered(text: str) -> str:
        return template.prompt([{"role": "user", "content": text}], settings.tools, "the prompt")

    return lambda text: encoder([rendered(text)])[0]
