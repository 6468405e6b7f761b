"""Before the first iteration: checks, data, tokenizer and the evaluation's measures."""

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
from rlgaf_ray.data.vocabulary import check_special_tokens, check_token_ids
from rlgaf_ray.engines.vllm_process import require_vllm
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.embeddings import MISSING, load_encode
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.evaluation.measures import Evaluated, build_measure
from rlgaf_ray.evaluation.text import decode
from rlgaf_ray.loop.reward_functions import RewardFunction
from rlgaf_ray.metrics import METRICS, VARIANT, suggestion
from rlgaf_ray.models.ends import merged, model_ends
from rlgaf_ray.models.families import check_linear_logits, check_soft_family, check_vllm, scoring_class
from rlgaf_ray.models.folder import check_model, read_config
from rlgaf_ray.models.generator import (
    FROM_SCRATCH_VOCABULARY,
    TINY_GPT2,
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
    notes: Sequence[str] = ()  # sentences about the data, for the run to report


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
    """Raise ``UserError`` for what can be known to fail without loading data or weights."""
    if config.rollout.traits.vllm:
        require_vllm()
    check_best_metric(config)
    check_networks(config)
    if config.model.generator not in (FILM_REVIEWS, *FROM_SCRATCH):
        own_tokenizer(config)
    check_lengths(config, config.task.prompt_tokens + config.task.response_tokens)
    if frozen := config.discriminator.frozen_layers:
        total = num_layers(config.model.generator, trust_remote_code=config.model.trust_remote_code)
        check_frozen_layers(frozen, total)


def check_networks(config: Config) -> None:
    """Raise ``UserError`` for a model that cannot be trained, or has no scalar head that the config asks for."""
    model, algorithm = config.model, config.generator.active
    check_model(model.generator, trust_remote_code=model.trust_remote_code, allow_pickle=model.allow_pickle)
    scalar = config.discriminator.traits.scalar_head or algorithm.trains_critic or algorithm.needs_discriminator
    if model.generator in FROM_SCRATCH:
        return
    described = read_config(model.generator, trust_remote_code=model.trust_remote_code)
    if config.rollout.traits.vllm:
        check_vllm(model.generator, described, on_cpu=config.cluster.gpus_per_actor == 0)
    if config.learner.logprob_chunk_tokens is not None:
        check_linear_logits(model.generator, described, "learner.logprob_chunk_tokens", "set it to null")
    if scalar:
        scoring_class(described)
    if algorithm.needs_discriminator:
        check_soft_family(model.generator, described)


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
    if limit is not None and max(asked, block_tokens) > limit:
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


def own_tokenizer(config: Config) -> tuple[PreTrainedTokenizerBase, int]:
    """A pretrained model's tokenizer, and how many embeddings the model has.

    Raises ``UserError`` where it cannot encode texts, or has special tokens that the model has no embedding for.
    """
    model, trusted = config.model.generator, config.model.trust_remote_code
    tokenizer = load_tokenizer(model, trust_remote_code=trusted)
    num_embeddings = int(read_config(model, trust_remote_code=trusted).get_text_config().vocab_size)
    check_special_tokens(tokenizer, num_embeddings, model)
    return tokenizer, num_embeddings


def cache_folder(config: Config) -> Path:
    """``warmup.cache``, by default in the user's home. Raises ``UserError`` where there is none."""
    return expanded(config.warmup.cache or user_cache_path("rlgaf_ray"), "warmup.cache").absolute()


def prepare_data(config: Config, cache: Path, source: TaskSource | None = None) -> Data:
    """The task and its tokenizer; the built-in model's tokenizer is trained on the warm-up's part alone.

    ``source``: replaces the one that ``task.name`` names. Raises ``UserError`` where model and task do not fit, such as
    a model without an embedding for a token of the task.
    """
    keep_rows = bool(config.reward.functions)
    source = source or load_source(config.task, base=config.base_warmup.steps != 0, keep_rows=keep_rows)
    if config.model.generator == FILM_REVIEWS:
        refuse_base_reviews(source.texts)
    model, trusted = config.model.generator, config.model.trust_remote_code
    tokenizer: PreTrainedTokenizerBase
    num_embeddings: int | None = None  # of a model that brings its own tokenizer
    if model in FROM_SCRATCH and (own := source.tokenizer) is not None:
        tokenizer = own
    elif model in FROM_SCRATCH:
        texts = source.warmup_texts
        if not texts:
            raise UserError(
                f"model.generator={model} trains a tokenizer on the task's text, and "
                f"{type(source).__name__}.warmup_texts is empty: give text, or take a model with a tokenizer"
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
    return Data(task, tokenizer, [*task.notes, *notes_on_ends(task, ends, tokenizer)])


def check_grammar(config: Config, task: Task) -> None:
    """Raise ``UserError`` where a task's grammar would not be kept to."""
    if task.legal is None:
        return
    if config.model.generator not in FROM_SCRATCH:
        raise UserError(
            f"task.name={config.task.name} says which tokens are legal, to a model that is trained from nothing: set "
            f"model.generator to one of {', '.join(FROM_SCRATCH)}"
        )
    if config.rollout.traits.vllm:
        raise UserError(
            f"task.name={config.task.name} says which tokens are legal, and vLLM would sample others: set "
            "rollout.engine=transformers"
        )


def notes_on_ends(task: Task, ends: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Sentences where demonstrations end as no file of the model says, or hold an end before their last token."""
    notes = []
    if new := sorted(set(task.end_ids) - set(ends)):
        names = ", ".join(repr(tokenizer.decode([token_id])) for token_id in new)
        notes.append(
            f"demonstrations end with {names} (token {', '.join(map(str, new))}), which eos_token_id names neither in "
            "the tokenizer nor in config.json or generation_config.json: rollouts of this run and the exported model "
            "end there too; other copies of the model need the token named"
        )
    every = merged(ends, task.end_ids)
    early = sum(bool(np.isin(item.response_ids[:-1], every).any()) for item in task.demonstrations)
    if early:
        notes.append(
            f"{early:,} of {len(task.demonstrations):,} demonstrations hold a token that ends a rollout before their "
            "end: no rollout can be like them"
        )
    return notes


def with_date(config: Config, recorded: Path) -> Config:
    """The config with the date that chat templates show: the run's own where it is resumed, else the present.

    ``recorded``: the config.yaml of the run; it may not be there.
    """
    if config.task.date is not None:
        return config
    begun = load_config(recorded).task.date if recorded.is_file() else None
    return with_values(config, {"task.date": begun or time.strftime("%Y-%m-%dT%H:%M:%S")})


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
