"""Before the first iteration: checks, data, tokenizer and the evaluation's measures."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from rlgaf_ray.actors.warmup import Warmups
from rlgaf_ray.config.load import with_values
from rlgaf_ray.config.model import FILM_REVIEWS, FROM_SCRATCH
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.base_reviews import refuse_base_reviews
from rlgaf_ray.data.cache import content_hash, write_atomically
from rlgaf_ray.data.storage import expanded
from rlgaf_ray.data.task import Task, TaskSource, evaluation_set, load_source
from rlgaf_ray.engines.vllm_process import require_vllm
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.embeddings import MISSING, load_encode
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.evaluation.measures import Evaluated, build_measure
from rlgaf_ray.evaluation.text import decode
from rlgaf_ray.loop.reward_functions import RewardFunction
from rlgaf_ray.metrics import METRICS, VARIANT, suggestion
from rlgaf_ray.models.generator import (
    FROM_SCRATCH_VOCABULARY,
    TINY_GPT2,
    check_model_source,
    max_positions,
    num_layers,
)
from rlgaf_ray.models.tokenizer import load_tokenizer, train_bpe, wrap_bpe
from rlgaf_ray.training.algorithm import AlgorithmFactory
from rlgaf_ray.training.algorithms import configured_algorithm
from rlgaf_ray.training.discriminator import DiscriminatorFactory
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.training.regularization import check_frozen_layers
from rlgaf_ray.types import EvaluationPart


@dataclass(frozen=True, slots=True)
class Data:
    task: Task
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Prepared:
    """What roles and loop are built from."""

    config: Config
    data: Data
    warmups: Warmups
    discriminator: DiscriminatorFactory = NeuralDiscriminator
    algorithm: AlgorithmFactory = configured_algorithm
    rewards: Mapping[str, RewardFunction] = field(default_factory=dict)
    """The functions of ``reward.functions`` that are loaded or were passed as arguments, by name."""


def with_name(config: Config) -> Config:
    """A run without a name is called after its task and the time of its start."""
    if config.run.name is not None:
        return config
    return config.model_copy(update={"run": config.run.model_copy(update={"name": new_name(config.task.label)})})


def new_name(label: str) -> str:
    """With the time, and a few random digits, as other runs may start in the same second."""
    return f"{label}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def with_task(config: Config, source: TaskSource) -> Config:
    """The config of a run whose task is passed in from Python: its record says so, and what follows from the task.

    A run without a name is called after the source's class.
    """
    values: dict[str, Any] = {
        "task.name": "python",
        "run.name": config.run.name or new_name(type(source).__name__.strip("_")),
        "evaluation.best_metric": config.evaluation.best_metric or source.quality,
    }
    if config.rollout.stop_at_end_of_text is None:
        values["rollout.stop_at_end_of_text"] = not source.full_length
    return with_values(config, values)


def check_before_start(config: Config) -> None:
    """Raise ``UserError`` for what can be known to fail without loading data or models."""
    if config.rollout.traits.vllm:
        require_vllm()
    check_model_source(config.model.generator, allow_pickle=config.model.allow_pickle)
    check_best_metric(config)
    check_lengths(config, config.task.prompt_tokens + config.task.response_tokens)
    if frozen := config.discriminator.frozen_layers:
        total = num_layers(config.model.generator, trust_remote_code=config.model.trust_remote_code)
        check_frozen_layers(frozen, total)


def check_best_metric(config: Config) -> None:
    """Raise ``UserError`` where no evaluation has the metric; of tasks with metrics of their own the first one says."""
    name = config.evaluation.best_metric
    measured = [each for each in METRICS if each.startswith(("eval/", "discriminator/"))]
    own = config.task.settings is None or config.task.traits.quality not in METRICS
    if name is None or own or VARIANT.sub("", name) in measured:
        return
    raise UserError(f"evaluation.best_metric={name} is not measured by evaluations: {suggestion(name, measured)}")


def check_lengths(config: Config, asked: int) -> None:
    """Raise ``UserError`` where the model does not take a prompt and its response of ``asked`` tokens together."""
    limit = max_positions(config.model.generator, trust_remote_code=config.model.trust_remote_code)
    packed = config.task.traits.packed and config.base_warmup.steps != 0
    block_tokens = config.warmup.generator.block_tokens if packed else 0
    if max(asked, block_tokens) > limit:
        blocks = f" and warmup.generator.block_tokens = {block_tokens}" if packed else ""
        raise UserError(
            f"model.generator={config.model.generator} takes {limit} tokens, but task.prompt_tokens + "
            f"task.response_tokens = {asked}{blocks}: lower them to at most {limit}, or take another model"
        )
    if config.model.generator == TINY_GPT2 and packed and config.warmup.generator.block_tokens < asked:
        raise UserError(
            f"warmup.generator.block_tokens={config.warmup.generator.block_tokens} leaves positions untrained that "
            f"task.prompt_tokens + task.response_tokens = {asked} need: raise it to at least {asked}"
        )


def cache_folder(config: Config) -> Path:
    """``warmup.cache``, by default in the user's home. Raises ``UserError`` where there is none."""
    return expanded(config.warmup.cache or user_cache_path("rlgaf_ray"), "warmup.cache").absolute()


def prepare_data(config: Config, cache: Path, source: TaskSource | None = None) -> Data:
    """The task and its tokenizer; the built-in model's tokenizer is trained on the warm-up's part alone.

    ``source``: replaces the one that ``task.name`` names.
    """
    keep_rows = bool(config.reward.functions)
    source = source or load_source(config.task, base=config.base_warmup.steps != 0, keep_rows=keep_rows)
    if config.model.generator == FILM_REVIEWS:
        refuse_base_reviews(source.texts)
    tokenizer: PreTrainedTokenizerBase
    if config.model.generator in FROM_SCRATCH and (own := getattr(source, "tokenizer", None)) is not None:
        tokenizer = own
    elif config.model.generator in FROM_SCRATCH:
        texts = source.warmup_texts
        if not texts:
            raise UserError(
                f"model.generator={config.model.generator} trains a tokenizer on the task's text, and "
                f"{type(source).__name__}.warmup_texts is empty: give text, or take a model with a tokenizer"
            )
        path = cache / f"tokenizer-{content_hash([str(FROM_SCRATCH_VOCABULARY), *texts])[:32]}.json"
        if not path.is_file():
            bpe = train_bpe(texts, FROM_SCRATCH_VOCABULARY)
            write_atomically(path, lambda temporary: bpe.save(str(temporary)))
        tokenizer = wrap_bpe(Tokenizer.from_file(str(path)))
    else:
        tokenizer = load_tokenizer(config.model.generator, trust_remote_code=config.model.trust_remote_code)
    return Data(source.tokenized(tokenizer, cache), tokenizer)


def what_is_learned_from(config: Config, task: Task) -> str:
    """The number of demonstrations, and which labels the discriminator reads beside them."""
    read = f"{len(task.demonstrations):,} demonstrations"
    if not config.labels_read:
        unread = task.counts.rejected if task.counts else 0
        hint = (
            f"; {unread:,} rejected answers are not read (discriminator.contrast=labels reads them)" if unread else ""
        )
        return f"learning from {read}, without labels{hint}"
    return f"learning from {read}, and the discriminator from {task.unwanted} in {' and '.join(config.labels_read)}"


def prepare_evaluator(
    config: Config,
    data: Data,
    cache: Path,
    num_prompts: int | None = None,
    part: EvaluationPart = "validation",
    report: Callable[[str], None] = print,
) -> Evaluator:
    """Measures the first ``num_prompts`` (default: ``evaluation.num_prompts``) of the part.

    ``report`` gets one line where there are no sentence embeddings.
    """
    encode = load_encode(cache) if config.evaluation.embeddings else None
    if encode is None and config.evaluation.embeddings:
        report(MISSING)
    count = num_prompts or config.evaluation.num_prompts
    real = evaluation_set(data.task, count, part)
    real_texts = decode([data.task.evaluated_ids(item) for item in real], data.tokenizer)
    return Evaluator(
        build_measure(Evaluated(data.task, part, real_texts, encode, cache)),
        [item.response_ids for item in real],
        real_texts,
        demonstrations=[item.response_ids for item in data.task.demonstrations],
        encode=encode,
    )
