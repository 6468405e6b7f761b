"""Prepare a run: checks of the config, data, tokenizer and evaluator."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from rlgaf_ray.actors.warmup import Warmups
from rlgaf_ray.config.load import load_config, with_values
from rlgaf_ray.config.model import FILM_REVIEWS, FROM_SCRATCH
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.base_reviews import refuse_base_reviews
from rlgaf_ray.data.cache import content_hash, write_atomically
from rlgaf_ray.data.storage import expanded
from rlgaf_ray.data.task import Task, TaskSource, evaluation_set, load_source
from rlgaf_ray.data.vocabulary import check_token_ids
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.embeddings import MISSING, load_encode
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.evaluation.measures import MeasureInputs, build_measure
from rlgaf_ray.evaluation.text import decode
from rlgaf_ray.loop.reward_functions import RewardFunction
from rlgaf_ray.models.ends import merged, model_ends
from rlgaf_ray.models.generator import (
    FROM_SCRATCH_VOCABULARY,
)
from rlgaf_ray.models.tokenizer import train_bpe, wrap_bpe
from rlgaf_ray.run.checks import check_grammar, own_tokenizer
from rlgaf_ray.training.algorithm import AlgorithmFactory
from rlgaf_ray.training.algorithms import configured_algorithm
from rlgaf_ray.training.discriminator import DiscriminatorFactory
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import EvaluationPart


@dataclass(frozen=True, slots=True)
class Data:
    """The tokenized task and its tokenizer."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    notes: Sequence[str] = ()  # messages about the data, which the run reports


@dataclass(frozen=True, slots=True)
class Prepared:
    """The config, data, models and factories that the roles and the loop are built from."""

    config: Config
    data: Data
    warmups: Warmups
    discriminator: DiscriminatorFactory = NeuralDiscriminator
    algorithm: AlgorithmFactory = configured_algorithm
    rewards: Mapping[str, RewardFunction] = field(default_factory=dict)
    """The functions of ``reward.functions``, loaded or passed as arguments, by name."""


def with_name(config: Config) -> Config:
    """Return the config with ``run.name`` set; by default from the task and the time."""
    if config.run.name is not None:
        return config
    return config.model_copy(update={"run": config.run.model_copy(update={"name": new_name(config.task.label)})})


def new_name(label: str) -> str:
    """Build a run name from a label, the time, and random digits, since runs may start in the same second."""
    return f"{label}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def with_task(config: Config, source: TaskSource) -> Config:
    """Return the config of a run whose task is in Python, with the settings that the task determines.

    A run without a name is named after the source's class.
    """
    values: dict[str, Any] = {
        "task.name": "python",
        "run.name": config.run.name or new_name(type(source).__name__.strip("_")),
        "evaluation.best_metric": config.evaluation.best_metric or source.quality,
    }
    if config.rollout.stop_at_end_of_text is None:
        values["rollout.stop_at_end_of_text"] = not source.full_length
    return with_values(config, values)


def python_task(config: Config, passed: TaskSource | None = None) -> TaskSource | None:
    """Return the task that was passed or is named by ``task.python.source``, if any; ``UserError`` for both."""
    if not config.task.python.source:
        return passed
    if passed is not None:
        raise UserError(
            f"task.python.source={config.task.python.source} and the argument task are two tasks: remove one"
        )
    return load_source(config.task, base=config.base_warmup.steps != 0)


def with_python_task(config: Config) -> Config:
    """Return the config with the settings that the task of ``task.python.source`` determines, if there is one."""
    source = python_task(config)
    return config if source is None else with_task(config, source)


def cache_folder(config: Config) -> Path:
    """Return ``warmup.cache``, by default in the user's home. Raises ``UserError`` if the user has none."""
    return expanded(config.warmup.cache or user_cache_path("rlgaf_ray"), "warmup.cache").absolute()


def prepare_data(config: Config, cache: Path, source: TaskSource | None = None) -> Data:
    """Load and tokenize the task; the tokenizer of a model trained from scratch is fitted to the warm-up text only.

    ``source`` replaces the data of ``task.name``. Raises ``UserError`` if model and task do not fit, for example if the
    model has no embedding for a token of the task.
    """
    keep_rows = bool(config.reward.functions)
    source = source or load_source(config.task, base=config.base_warmup.steps != 0, keep_rows=keep_rows)
    if config.model.generator == FILM_REVIEWS:
        refuse_base_reviews(source.texts)
    model, trusted = config.model.generator, config.model.trust_remote_code
    tokenizer: PreTrainedTokenizerBase
    num_embeddings: int | None = None  # for models with their own tokenizer
    if model in FROM_SCRATCH and (own := source.tokenizer) is not None:
        tokenizer = own
    elif model in FROM_SCRATCH:
        texts = source.warmup_texts
        if not texts:
            raise UserError(
                f"model.generator={model} trains a tokenizer on the task's text, but "
                f"{type(source).__name__}.warmup_texts is empty: provide text, or choose a model with a tokenizer"
            )
        path = cache / f"tokenizer-{content_hash([str(FROM_SCRATCH_VOCABULARY), *texts])[:32]}.json"
        if not path.is_file():
            bpe = train_bpe(texts, FROM_SCRATCH_VOCABULARY)
            write_atomically(path, lambda temporary: bpe.save(str(temporary)))
        tokenizer = wrap_bpe(Tokenizer.from_file(str(path)))
    else:
        tokenizer, num_embeddings = own_tokenizer(config)
    ends = model_ends(model, tokenizer, trust_remote_code=trusted)
    task = source.with_ends(ends).tokenized(tokenizer, cache)
    if num_embeddings is not None:
        block_tokens = config.base_warmup.block_tokens if config.base_warmup.steps != 0 else None
        check_token_ids(task, tokenizer, num_embeddings, model, block_tokens=block_tokens)
    check_grammar(config, task)
    return Data(task, tokenizer, [*task.notes, *notes_on_prompts(config, task), *notes_on_ends(task, ends, tokenizer)])


def notes_on_prompts(config: Config, task: Task) -> list[str]:
    """Return a message if prompts without answers are configured but not used."""
    given = getattr(config.task.settings, "prompts", None)
    if not given or config.rollout.free_prompts > 0:
        return []
    return [
        f"the {len(task.prompts):,} prompts of task.{config.task.name}.prompts are not used: "
        "rollout.free_prompts, their share of each batch, is 0"
    ]


def notes_on_ends(task: Task, ends: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return messages about demonstrations with an end token that the model's files lack, or one before the end."""
    notes = []
    if new := sorted(set(task.end_ids) - set(ends)):
        names = ", ".join(repr(tokenizer.decode([token_id])) for token_id in new)
        notes.append(
            f"demonstrations end with {names} (token {', '.join(map(str, new))}), which is not an eos_token_id of the "
            "tokenizer, config.json or generation_config.json: rollouts of this run and the exported model end there "
            "too; add it to eos_token_id in other copies of the model"
        )
    every = merged(ends, task.end_ids)
    early = sum(bool(np.isin(item.response_ids[:-1], every).any()) for item in task.demonstrations)
    if early:
        notes.append(
            f"{early:,} of {len(task.demonstrations):,} demonstrations contain a token that ends a rollout before "
            "their end: no rollout can match them"
        )
    return notes


def with_date(config: Config, recorded: Path) -> Config:
    """Return the config with the date that chat templates show: that of a resumed run, else the present one.

    ``recorded`` is the run's config.yaml, which may not exist yet.
    """
    if config.task.date is not None:
        return config
    date = load_config(recorded).task.date if recorded.is_file() else None
    return with_values(config, {"task.date": date or time.strftime("%Y-%m-%dT%H:%M:%S")})


def what_is_learned_from(config: Config, task: Task) -> str:
    """Describe the training data: the number of demonstrations, and the use of labels."""
    read = f"{len(task.demonstrations):,} demonstrations"
    if not config.labels_read:
        unread = task.counts.rejected if task.counts else 0
        hint = (
            f"; {unread:,} rejected answers are not read (discriminator.contrast=labels reads them)" if unread else ""
        )
        return f"learning from {read}, without labels{hint}"
    return f"learning from {read}, and from {task.unwanted} in {' and '.join(config.labels_read)}"


def prepare_evaluator(
    config: Config,
    data: Data,
    cache: Path,
    num_prompts: int | None = None,
    part: EvaluationPart = "validation",
    report: Callable[[str], None] = print,
) -> Evaluator:
    """Build the evaluator of the first ``num_prompts`` (default: ``evaluation.num_prompts``) of the part.

    ``report`` receives one line if sentence embeddings are not available.
    """
    encode = load_encode(cache) if config.evaluation.embeddings else None
    if encode is None and config.evaluation.embeddings:
        report(MISSING)
    count = num_prompts or config.evaluation.num_prompts
    real = evaluation_set(data.task, count, part)
    real_texts = decode([data.task.evaluated_ids(item) for item in real], data.tokenizer)
    return Evaluator(
        build_measure(MeasureInputs(data.task, part, real_texts, encode, cache)),
        [item.response_ids for item in real],
        real_texts,
        demonstrations=[item.response_ids for item in data.task.demonstrations],
        encode=encode,
    )
