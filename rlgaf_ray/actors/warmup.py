"""Run the supervised warm-ups under Ray Train: in the driver's process for one CPU worker, distributed otherwise.

The resulting models are cached under a hash of the data, the model's content and the settings. An interrupted warm-up
resumes from its last checkpoint.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from transformers import PreTrainedTokenizerBase

from rlgaf_ray.actors.answers import ActorFailure
from rlgaf_ray.actors.contrast import contrast_sampling
from rlgaf_ray.actors.placement import check_warmup, free_resources, warmup_bundles
from rlgaf_ray.actors.warmup_worker import contrast_worker, discriminator_worker, generator_worker, sft_worker
from rlgaf_ray.config.model import FILM_REVIEWS, FROM_SCRATCH
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.cache import content_hash, made_once
from rlgaf_ray.data.storage import writing
from rlgaf_ray.data.task import Task
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.built_in import FOLDER, SHA256, absolute_source
from rlgaf_ray.models.ends import merged, model_ends
from rlgaf_ray.models.folder import read_config
from rlgaf_ray.models.vocabulary import unused_token_ids
from rlgaf_ray.training.architectures import DISCRIMINATORS
from rlgaf_ray.training.fingerprint import model_fingerprint
from rlgaf_ray.training.memory import release_freed_memory
from rlgaf_ray.training.warmup import WarmupProgress
from rlgaf_ray.types import Demonstration

FORMAT = 5  # increment when a code change changes the result of a warm-up
START_RETRIES = 2
START_SECONDS = 60.0  # Ray Train's limit for one start of the workers


@dataclass(frozen=True, slots=True)
class Warmups:
    """Paths of the warmed-up models, as Hugging Face folders."""

    base: Path  # the generator before SFT
    generator: Path  # the generator after SFT; equals base without SFT
    discriminator: Path
    contrast: Path | None  # samples of the base model, if the discriminator trains on them
    cached: bool  # all came from the cache


Report = Callable[[str, WarmupProgress], None]
Train = Callable[[dict[str, Any]], None]
Run = Callable[[Train, dict[str, Any], Callable[[], Any], Path, Report], None]


def prepare_warmups(
    config: Config,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    report: Report,
    *,
    with_ray: bool = True,
    sft_rows: Sequence[Demonstration] | None = None,
    sft_state: Path | None = None,
) -> Warmups:
    """Return the warmed-up models and train those that are not cached.

    ``report`` receives the stage's name ('generator', 'sft', ...) and its progress. Without Ray the models are trained
    in this process, on CPU, with the same result as with one worker of Ray Train. ``sft_rows``: rows for SFT instead of
    the task's demonstrations, without a contrastive term. ``sft_state``: folder where SFT leaves its training state;
    SFT of more steps, but otherwise the same settings, continues from there with the same result as from the start.
    """
    run = _run if with_ray else _run_here
    source = config.model.generator
    common = [config.learner.precision, str(config.warmup.num_workers)]
    own_ends = model_ends(source, tokenizer, trust_remote_code=config.model.trust_remote_code)
    ends, unused, legal = merged(own_ends, task.end_ids), _unused(config, tokenizer), task.legal
    # hash the model's content: the files behind a path may change
    model = model_fingerprint(source, trust_remote_code=config.model.trust_remote_code)
    data = [str(FORMAT), *task.base_key, task.checksum, tokenizer.backend_tokenizer.to_str(), model, str(ends)]
    data += map(str, unused)
    if source == FILM_REVIEWS and config.base_warmup.steps == 0 and ends == own_ends:
        generator, key, cached = FOLDER, SHA256, True
    else:
        key = content_hash([*data, config.base_warmup.model_dump_json(), *common])
        generator = cache / "warmups" / f"generator-{key[:16]}"
        blocks = partial(task.warmup_blocks, config.base_warmup.block_tokens)
        placed = absolute_source(source)  # Ray Train changes the working directory of its workers
        payload: dict[str, Any] = {
            "stage": "generator",
            "source": placed,
            "ends": ends,
            "unused": unused,
            "legal": legal,
        }
        cached = _made(generator, generator_worker, blocks, payload, config, tokenizer, report, run)
    base, base_key = generator, key
    chosen = (config.task.max_demonstrations, config.task.draw_seed, config.task.draw_share)
    cut = [str(value) for value in (*chosen, config.task.prompt_tokens, config.task.response_tokens)]
    cut += task.warmup_key
    if config.warmup.sft.steps:
        others = _other_prompts(task) if config.warmup.sft.contrastive_weight > 0 else None
        read = [] if others is None else [str([each.tolist() for each in row]) for row in others if row is not None]
        if sft_rows is not None:
            assert others is None, "these rows have no other prompts"
            read = [str([(item.prompt_ids.tolist(), item.response_ids.tolist()) for item in sft_rows])]
        stage = [config.warmup.sft.model_dump_json(), *common, str(config.run.seed), *read]
        key = content_hash([key, *data, *cut, *stage])
        payload = {"stage": "sft", "source": str(base), "ends": ends, "state": sft_state}
        generator = cache / "warmups" / f"sft-{key[:16]}"
        rows = (task.demonstrations if sft_rows is None else sft_rows, others)
        cached &= _made(generator, sft_worker, lambda: rows, payload, config, tokenizer, report, run)

    settings = config.discriminator
    options = DISCRIMINATORS[settings.architecture].options
    network: list[str] = [settings.pooling, settings.architecture, *(repr(getattr(settings, name)) for name in options)]
    if settings.match_lengths or settings.view != "response":
        network += [str(settings.match_lengths), settings.view, str(settings.view_tokens)]
    labelled = config.warmup.discriminator.model_dump_json(exclude={"rollouts"})  # those are read in the loop
    key = content_hash([key, *data, *cut, *network, labelled, *common])
    discriminator = cache / "warmups" / f"discriminator-{key[:16]}"
    payload = {"stage": "discriminator", "source": str(generator)}
    windows = task.discriminator_warmup
    cached &= _made(discriminator, discriminator_worker, windows, payload, config, tokenizer, report, run)
    contrast = None
    if settings.contrast_read == "base_model":
        key = content_hash([base_key, *data, *cut, config.model.dtype, repr(contrast_sampling(config))])
        contrast = cache / "warmups" / f"contrast-{key[:16]}"
        payload = {"stage": "contrast", "source": str(base)}

        def prompts() -> list[np.ndarray]:
            return [item.prompt_ids for item in task.demonstrations]

        cached &= _made(contrast, contrast_worker, prompts, payload, config, tokenizer, report, run)
    return Warmups(base, generator, discriminator, contrast, cached)


def _other_prompts(task: Task) -> list[Sequence[np.ndarray] | None]:
    """Return ``task.other_prompts`` of all demonstrations."""
    return [task.other_prompts(row) for row in range(len(task.demonstrations))]


def _unused(config: Config, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the model's token ids that its tokenizer does not use."""
    source = config.model.generator
    if source in FROM_SCRATCH:
        return []
    described = read_config(source, trust_remote_code=config.model.trust_remote_code)
    return unused_token_ids(tokenizer, described.get_text_config().vocab_size)


def _made(
    target: Path,
    train: Train,
    data: Callable[[], Any],
    payload: dict[str, Any],
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    report: Report,
    run: Run,
) -> bool:
    """Train ``target`` on ``data()`` unless it is cached; returns whether it was."""
    if target.is_dir():
        return True
    with made_once(target):
        if not target.is_dir():
            unfinished = target.with_name(target.name + ".partial")
            with writing(target):
                unfinished.mkdir(parents=True, exist_ok=True)
            payload |= {"config": config, "folder": str(unfinished), "pad_token_id": tokenizer.pad_token_id}
            payload["vocabulary"] = (len(tokenizer), tokenizer.eos_token_id)
            run(train, payload, data, target, report)
            result = unfinished / "result"
            with writing(target):
                tokenizer.save_pretrained(result)
                result.rename(target)
                shutil.rmtree(unfinished)
    return False


def _run(train: Train, payload: dict[str, Any], data: Callable[[], Any], target: Path, report: Report) -> None:
    """Run one warm-up under Ray Train.

    Raises a worker's ``UserError``, such as ``StorageError``, an ``ActorFailure`` if a worker process failed, and a
    ``UserError`` if the workers cannot be started.
    """
    config: Config = payload["config"]
    check_warmup(config)
    workers = warmup_bundles(config, config.warmup.num_workers)
    payload = payload | {"data": ray.put(data())}
    if not workers:  # the callback cannot be sent to another process; there, rank 0 prints
        payload["report"] = report
    trainer = TorchTrainer(
        train,
        train_loop_config=payload,
        scaling_config=ScalingConfig(
            num_workers=len(workers),
            use_gpu=config.cluster.gpus_per_actor > 0,
            resources_per_worker=workers[0] if workers else None,
        ),
        run_config=RunConfig(
            name=target.name,
            storage_path=str(target.parent / "ray_train"),
            failure_config=FailureConfig(  # type: ignore[call-arg]  # mypy sees that of Ray Train's first version
                max_failures=1, controller_failure_limit=_start_retries(config)
            ),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:  # its text consists of tracebacks
        failures = list(error.worker_failures.values())
        mistake = next((failure for failure in failures if isinstance(failure, UserError)), None)
        raise mistake or ActorFailure(f"{target.name} could not be trained: {failures[0]}") from error
    except ControllerError as error:
        reason = str(error.controller_failure).strip().partition(". ")[0]  # a list of possible causes follows
        raise UserError(
            f"{target.name} could not be trained: {reason}; {free_resources()} of the cluster are free: if other jobs "
            "hold the rest, wait for them, or lower warmup.num_workers"
        ) from error
    if not workers:
        release_freed_memory()


def _start_retries(config: Config) -> int:
    """Return how often to try again to start the workers, which other jobs or a lost node may prevent."""
    return max(START_RETRIES, math.ceil(config.cluster.join_seconds / START_SECONDS))


def _run_here(train: Train, payload: dict[str, Any], data: Callable[[], Any], target: Path, report: Report) -> None:
    """Run one warm-up in this process, without Ray."""
    train(payload | {"data": data(), "report": report})
