"""The table of ``discriminator.architecture``: how to build a network for the warm-up and load its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from rlgaf_ray.config.discriminator import DiscriminatorArchitecture
from rlgaf_ray.config.model import FROM_SCRATCH
from rlgaf_ray.config.schema import Config
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.cnn import CnnDiscriminator, build_cnn
from rlgaf_ray.models.discriminator import DiscriminatorNetwork
from rlgaf_ray.models.families import check_linear_logits
from rlgaf_ray.models.folder import read_config
from rlgaf_ray.models.generative_critic import GenerativeCritic, encode_question
from rlgaf_ray.models.generator import max_positions
from rlgaf_ray.models.lora import add_adapters
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.models.tokenizer import load_tokenizer
from rlgaf_ray.training.regularization import freeze_lower_layers


class New(Protocol):
    """Builds a network to warm up."""

    def __call__(
        self, source: str, config: Config, *, vocab_size: int, pad_token_id: int, seed: int, device: torch.device
    ) -> DiscriminatorNetwork:
        """Build the network. ``source``: folder of the SFT model with its tokenizer."""
        ...


class Load(Protocol):
    """Loads a warmed-up network."""

    def __call__(
        self, folder: str | Path, config: Config, *, pad_token_id: int, device: torch.device
    ) -> DiscriminatorNetwork:
        """Load the warm-up's network ready to train, with adapters added and lower layers frozen."""
        ...


def no_check(config: Config, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    """Accept every config."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A row of ``DISCRIMINATORS``."""

    new: New
    load: Load
    options: tuple[str, ...] = ()  # settings that ``new`` reads, besides the pooling
    check: Callable[[Config, PreTrainedTokenizerBase, int], None] = no_check
    """Raises ``UserError`` if ``new`` would fail or if prompt plus response of that many tokens is too long."""


def _new_scalar(
    source: str, config: Config, *, vocab_size: int, pad_token_id: int, seed: int, device: torch.device
) -> ScalarModel:
    return ScalarModel.load(
        source,
        pooling=config.discriminator.pooling,
        pad_token_id=pad_token_id,
        seed=seed,
        trust_remote_code=config.model.trust_remote_code,
        device=device,
    )


def _load_scalar(folder: str | Path, config: Config, *, pad_token_id: int, device: torch.device) -> ScalarModel:
    model = ScalarModel.load(
        folder,
        pooling=config.discriminator.pooling,
        pad_token_id=pad_token_id,
        seed=config.run.seed,
        trust_remote_code=config.model.trust_remote_code,
        device=device,
    )
    add_adapters(model.network, config.model.lora, seed=config.run.seed, trained=[model.network.score])
    freeze_lower_layers(model.network, config.discriminator.num_frozen)
    return model


def _new_cnn(
    source: str, config: Config, *, vocab_size: int, pad_token_id: int, seed: int, device: torch.device
) -> CnnDiscriminator:
    # No dropout: it would make a resumed run differ from an uninterrupted one.
    return build_cnn(vocab_size=vocab_size, pad_token_id=pad_token_id, seed=seed, dropout=0.0).to(device)


def _load_cnn(folder: str | Path, config: Config, *, pad_token_id: int, device: torch.device) -> CnnDiscriminator:
    return CnnDiscriminator.load(folder, device=device)


def _new_generative(
    source: str, config: Config, *, vocab_size: int, pad_token_id: int, seed: int, device: torch.device
) -> GenerativeCritic:
    trusted, settings = config.model.trust_remote_code, config.discriminator
    return GenerativeCritic.new(
        source,
        load_tokenizer(source, trust_remote_code=trusted),
        question=settings.question,
        verdicts=settings.verdicts,
        trust_remote_code=trusted,
        device=device,
    )


def _load_generative(
    folder: str | Path, config: Config, *, pad_token_id: int, device: torch.device
) -> GenerativeCritic:
    model = GenerativeCritic.load(folder, trust_remote_code=config.model.trust_remote_code, device=device)
    add_adapters(model.network, config.model.lora, seed=config.run.seed)
    freeze_lower_layers(model.network, config.discriminator.num_frozen)
    return model


def _check_question(config: Config, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    settings, model = config.discriminator, config.model
    if model.generator not in FROM_SCRATCH:
        described = read_config(model.generator, trust_remote_code=model.trust_remote_code)
        key = f"discriminator.architecture={settings.architecture}"
        check_linear_logits(model.generator, described, key, "choose another architecture")
    question_ids, _ = encode_question(tokenizer, settings.question, settings.verdicts)
    limit = max_positions(config.model.generator, trust_remote_code=config.model.trust_remote_code)
    if limit is not None and (needed := max_tokens + len(question_ids) + 1) > limit:
        raise UserError(
            f"model.generator={config.model.generator} takes at most {limit} tokens, but prompt, response, "
            f"discriminator.question and verdict have {needed}: shorten them, or choose another model"
        )


DISCRIMINATORS: dict[DiscriminatorArchitecture, Architecture] = {
    "generator": Architecture(_new_scalar, _load_scalar),
    "cnn": Architecture(_new_cnn, _load_cnn),
    "generative": Architecture(_new_generative, _load_generative, ("question", "verdicts"), _check_question),
}
"""Architectures by ``discriminator.architecture``; ``config.discriminator.ARCHITECTURE_TRAITS`` lists capabilities."""
