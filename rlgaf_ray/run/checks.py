"""Checks of a config against its model and task, before anything expensive starts."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from rlgaf_ray.config.model import FILM_REVIEWS, FROM_SCRATCH
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.task import Task
from rlgaf_ray.data.vocabulary import check_special_tokens
from rlgaf_ray.engines.vllm_process import require_vllm
from rlgaf_ray.errors import UserError
from rlgaf_ray.metrics import METRICS, VARIANT, suggestion
from rlgaf_ray.models.families import check_linear_logits, check_soft_family, check_vllm, scoring_class
from rlgaf_ray.models.folder import check_model, longrope_length, read_config
from rlgaf_ray.models.generator import TINY_GPT2, max_positions, num_layers
from rlgaf_ray.models.lora import check_adapters
from rlgaf_ray.models.tokenizer import load_tokenizer
from rlgaf_ray.models.vocabulary import unused_token_ids
from rlgaf_ray.training.regularization import check_frozen_layers

VLLM_MASKED_TOKENS = 1024
"""The longest ``logit_bias`` of vLLM 0.32 on a GPU; on CPU there is no limit."""


def check_before_start(config: Config) -> None:
    """Raise ``UserError`` for what can be known to fail without loading data or weights."""
    if config.rollout.traits.vllm:
        require_vllm()
    check_best_metric(config)
    check_networks(config)
    if config.model.generator not in (FILM_REVIEWS, *FROM_SCRATCH):
        check_unused_tokens(config, *own_tokenizer(config))
    check_lengths(config, config.task.prompt_tokens + config.task.response_tokens)
    if frozen := config.discriminator.frozen_layers:
        total = num_layers(config.model.generator, trust_remote_code=config.model.trust_remote_code)
        check_frozen_layers(frozen, total)


def check_networks(config: Config) -> None:
    """Raise ``UserError`` for a model that cannot be trained, or that lacks a scalar head or layers for adapters."""
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
    if model.lora.rank > 0:
        check_adapters(described, model.lora, trust_remote_code=model.trust_remote_code)
    if algorithm.needs_discriminator:
        check_soft_family(model.generator, described)


def check_best_metric(config: Config) -> None:
    """Raise ``UserError`` if evaluations do not measure the metric.

    A task with its own metrics is checked at the first evaluation instead.
    """
    name = config.evaluation.best_metric
    measured = [each for each in METRICS if each.startswith(("eval/", "discriminator/"))]
    own = config.task.traits.own_quality or config.task.traits.quality not in METRICS
    if name is None or own or VARIANT.sub("", name) in measured:
        return
    raise UserError(f"evaluation.best_metric={name} is not measured by evaluations: {suggestion(name, measured)}")


def check_lengths(config: Config, asked: int) -> None:
    """Raise ``UserError`` if a prompt and its response, ``asked`` tokens together, exceed the model's context."""
    model, trusted = config.model.generator, config.model.trust_remote_code
    limit = max_positions(model, trust_remote_code=trusted)
    packed = config.task.traits.packed and config.base_warmup.steps != 0
    block_tokens = config.warmup.generator.block_tokens if packed else 0
    if limit is not None and max(asked, block_tokens) > limit:
        blocks = f" and warmup.generator.block_tokens = {block_tokens}" if packed else ""
        scaled = model not in FROM_SCRATCH and longrope_length(read_config(model, trust_remote_code=trusted))
        reason = " with one set of LongRoPE factors (a longer sequence changes its whole batch)" if scaled else ""
        raise UserError(
            f"model.generator={model} takes {limit} tokens{reason}, but task.prompt_tokens + "
            f"task.response_tokens = {asked}{blocks}: lower them to at most {limit}, or choose another model"
        )
    if model == TINY_GPT2 and packed and config.warmup.generator.block_tokens < asked:
        raise UserError(
            f"warmup.generator.block_tokens={config.warmup.generator.block_tokens} leaves positions untrained that "
            f"task.prompt_tokens + task.response_tokens = {asked} need: raise it to at least {asked}"
        )


def own_tokenizer(config: Config) -> tuple[PreTrainedTokenizerBase, int]:
    """Load a pretrained model's tokenizer; returns it and the model's number of embeddings.

    Raises ``UserError`` if it cannot encode text, or if the model lacks an embedding for one of its special tokens.
    """
    model, trusted = config.model.generator, config.model.trust_remote_code
    tokenizer = load_tokenizer(model, trust_remote_code=trusted)
    num_embeddings = int(read_config(model, trust_remote_code=trusted).get_text_config().vocab_size)
    check_special_tokens(tokenizer, num_embeddings, model)
    return tokenizer, num_embeddings


def check_unused_tokens(config: Config, tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
    """Raise ``UserError`` if vLLM has to exclude more token ids than it can on a GPU."""
    if not config.rollout.traits.vllm or config.cluster.gpus_per_actor == 0:
        return
    if (unused := len(unused_token_ids(tokenizer, num_embeddings))) > VLLM_MASKED_TOKENS:
        raise UserError(
            f"model.generator={config.model.generator} has {unused} embeddings without a token, of which vLLM on a GPU "
            f"excludes at most {VLLM_MASKED_TOKENS}: set rollout.engine=transformers, or use another model"
        )


def check_grammar(config: Config, task: Task) -> None:
    """Raise ``UserError`` if the model or the engine cannot enforce the task's legal tokens."""
    if task.legal is None:
        return
    if config.model.generator not in FROM_SCRATCH:
        raise UserError(
            f"task.name={config.task.name} restricts the legal tokens, which needs a model trained from scratch: set "
            f"model.generator to one of {', '.join(FROM_SCRATCH)}"
        )
    if config.rollout.traits.vllm:
        raise UserError(
            f"task.name={config.task.name} restricts the legal tokens, which vLLM does not support: set "
            "rollout.engine=transformers"
        )
