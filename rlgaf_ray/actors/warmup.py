"""The supervised warm-ups under Ray Train: in the driver's process for one worker on CPU, distributed for more.

What they make is kept under the cache folder by a hash of the data, the model's content and the settings; a warm-up
that was cut off goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgaf_ray.actors.answers import ActorFailure
from rlgaf_ray.actors.contrast import contrast_sampling, sample_contrast, save_contrast
from rlgaf_ray.config.model import FILM_REVIEWS, FROM_SCRATCH
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.cache import content_hash, made_once
from rlgaf_ray.data.lengths import View
from rlgaf_ray.data.storage import writing
from rlgaf_ray.data.task import Task
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.built_in import FOLDER, SHA256
from rlgaf_ray.models.ends import merged, model_ends, set_ends
from rlgaf_ray.models.folder import read_config, save_network
from rlgaf_ray.models.generator import build_from_scratch, end_of_text_ids, load_generator
from rlgaf_ray.models.legal import constrain
from rlgaf_ray.models.vocabulary import UNUSED, unused_token_ids
from rlgaf_ray.training.architectures import DISCRIMINATORS
from rlgaf_ray.training.fingerprint import model_fingerprint
from rlgaf_ray.training.memory import keep_freed_memory, release_freed_memory
from rlgaf_ray.training.sft import choose_steps, fine_tune
from rlgaf_ray.training.warmup import Progress, Worker, warm_up_discriminator, warm_up_generator

FORMAT = 3  # raise it when a change of the code changes what a warm-up makes
SEED = 0  # runs of every seed share one warm-up


@dataclass(frozen=True, slots=True)
class Warmups:
    """Hugging Face folders; the discriminator's holds the network of its architecture."""

    base: Path  # the generator before SFT
    generator: Path  # after it; the same folder where no SFT ran
    discriminator: Path
    contrast: Path | None  # samples of the base model, where they are the contrast
    cached: bool  # nothing had to be trained


Report = Callable[[str, Progress], None]
Train = Callable[[dict[str, Any]], None]
Run = Callable[[Train, dict[str, Any], Any, Path, Report], None]


def prepare_warmups(
    config: Config,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    report: Report,
    *,
    with_ray: bool = True,
) -> Warmups:
    """Return the warmed-up models, training what the cache does not hold. ``report`` gets ('generator', progress).

    Without Ray they are trained in this process, on CPU, to the same numbers as by one worker of Ray Train.
    """
    run = _run if with_ray else _run_here
    source = config.model.generator
    common = [config.learner.precision, str(config.warmup.num_workers)]
    own_ends = model_ends(source, tokenizer, trust_remote_code=config.model.trust_remote_code)
    ends, unused, legal = merged(own_ends, task.end_ids), _unused(config, tokenizer), task.legal
    # the model by its content: a path can lead to another one tomorrow
    model = model_fingerprint(source, trust_remote_code=config.model.trust_remote_code)
    data = [str(FORMAT), *task.base_key, task.checksum, tokenizer.backend_tokenizer.to_str(), model, str(ends)]
    data += map(str, unused)
    if source == FILM_REVIEWS and config.base_warmup.steps == 0 and ends == own_ends:
        generator, key, cached = FOLDER, SHA256, True
    else:
        key = content_hash([*data, config.base_warmup.model_dump_json(), *common])
        generator = cache / "warmups" / f"generator-{key[:16]}"
        blocks = partial(task.warmup_blocks, config.base_warmup.block_tokens)
        payload = {"stage": "generator", "source": source, "ends": ends, "unused": unused, "legal": legal}
        cached = _made(generator, _generator_worker, blocks, payload, config, tokenizer, report, run)
    base, base_key = generator, key
    chosen = (config.task.max_demonstrations, config.task.draw_seed, config.task.draw_share)
    cut = [str(value) for value in (*chosen, config.task.prompt_tokens, config.task.response_tokens)]
    cut += task.warmup_key
    if config.warmup.sft.steps:
        key = content_hash([key, *data, *cut, config.warmup.sft.model_dump_json(), *common, str(config.run.seed)])
        payload = {"stage": "sft", "source": str(base), "ends": ends}
        generator = cache / "warmups" / f"sft-{key[:16]}"
        cached &= _made(generator, _sft_worker, lambda: task.demonstrations, payload, config, tokenizer, report, run)

    settings = config.discriminator
    options = DISCRIMINATORS[settings.architecture].options
    network: list[str] = [settings.pooling, settings.architecture, *(repr(getattr(settings, name)) for name in options)]
    if settings.match_lengths or settings.view != "response":
        network += [str(settings.match_lengths), settings.view, str(settings.view_tokens)]
    key = content_hash([key, *data, *cut, *network, config.warmup.discriminator.model_dump_json(), *common])
    discriminator = cache / "warmups" / f"discriminator-{key[:16]}"
    payload = {"stage": "discriminator", "source": str(generator)}
    windows = task.discriminator_warmup
    cached &= _made(discriminator, _discriminator_worker, windows, payload, config, tokenizer, report, run)
    contrast = None
    if settings.contrast_read == "base_model":
        key = content_hash([base_key, *data, *cut, config.model.dtype, repr(contrast_sampling(config))])
        contrast = cache / "warmups" / f"contrast-{key[:16]}"
        payload = {"stage": "contrast", "source": str(base)}

        def prompts() -> list[np.ndarray]:
            return [item.prompt_ids for item in task.demonstrations]

        cached &= _made(contrast, _contrast_worker, prompts, payload, config, tokenizer, report, run)
    return Warmups(base, generator, discriminator, contrast, cached)


def _unused(config: Config, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of the model that its tokenizer has no token for."""
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
    """Whether ``target`` was in the cache; it is trained on ``data()`` where it was not."""
    if target.is_dir():
        return True
    with made_once(target):
        if not target.is_dir():
            unfinished = target.with_name(target.name + ".partial")
            with writing(target):
                unfinished.mkdir(parents=True, exist_ok=True)
            payload |= {"config": config, "folder": str(unfinished), "pad_token_id": tokenizer.pad_token_id}
            payload["vocabulary"] = (len(tokenizer), tokenizer.eos_token_id)
            run(train, payload, data(), target, report)
            result = unfinished / "result"
            with writing(target):
                tokenizer.save_pretrained(result)
                result.rename(target)
                shutil.rmtree(unfinished)
    return False


def _run(train: Train, payload: dict[str, Any], data: Any, target: Path, report: Report) -> None:
    """One warm-up under Ray Train.

    Raises a worker's ``UserError``, such as ``StorageError``; ``ActorFailure`` where one in another process failed.
    """
    config: Config = payload["config"]
    gpus = config.cluster.gpus_per_actor > 0
    in_process = config.warmup.num_workers == 1 and not gpus
    payload = payload | {"data": ray.put(data)}
    if in_process:  # a callback cannot follow a worker into another process: there, rank 0 prints
        payload["report"] = report
    trainer = TorchTrainer(
        train,
        train_loop_config=payload,
        scaling_config=ScalingConfig(num_workers=0 if in_process else config.warmup.num_workers, use_gpu=gpus),
        run_config=RunConfig(
            name=target.name,
            storage_path=str(target.parent / "ray_train"),
            failure_config=FailureConfig(max_failures=1),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:  # its text is all tracebacks
        failures = list(error.worker_failures.values())
        mistake = next((failure for failure in failures if isinstance(failure, UserError)), None)
        raise mistake or ActorFailure(f"{target.name} could not be trained: {failures[0]}") from error
    if in_process:
        release_freed_memory()


def _run_here(train: Train, payload: dict[str, Any], data: Any, target: Path, report: Report) -> None:
    """One warm-up in this process, without Ray."""
    train(payload | {"data": data, "report": report})


def _generator_worker(payload: dict[str, Any]) -> None:
    """The base warm-up."""
    config: Config = payload["config"]
    worker = _worker(payload["stage"], payload)
    model = _generator(payload, worker.device)
    settings = config.base_warmup
    warm_up_generator(
        model,
        _data(payload),
        settings,
        precision=config.learner.precision,
        seed=SEED,
        checkpoint_every=config.warmup.checkpoint_every,
        worker=worker,
    )
    if payload["unused"]:
        setattr(model.config, UNUSED, payload["unused"])
    _write_generator(model, settings.steps, payload, worker)


def _sft_worker(payload: dict[str, Any]) -> None:
    """SFT on the demonstrations; its draws follow from ``run.seed``."""
    config: Config = payload["config"]
    worker = _worker(payload["stage"], payload)
    demonstrations, settings = _data(payload), config.warmup.sft
    precision, seed = config.learner.precision, config.run.seed
    make_model = partial(_generator, payload, worker.device)
    if settings.steps == "auto":
        steps = choose_steps(make_model, demonstrations, settings, precision=precision, seed=seed, worker=worker)
        settings = settings.model_copy(update={"steps": steps})
    assert isinstance(settings.steps, int)
    model = make_model()
    fine_tune(
        model,
        demonstrations,
        settings,
        precision=precision,
        seed=seed,
        checkpoint_every=config.warmup.checkpoint_every,
        worker=worker,
    )
    _write_generator(model, settings.steps, payload, worker)


def _write_generator(model: PreTrainedModel, steps: int | None, payload: dict[str, Any], worker: Worker) -> None:
    if worker.rank == 0:
        result = Path(payload["folder"]) / "result"
        set_ends(model, payload["ends"])
        with writing(result):
            save_network(model, result)
            (result / "warmup.json").write_text(json.dumps({"steps": steps}), encoding="utf-8")


def _generator(payload: dict[str, Any], device: torch.device) -> PreTrainedModel:
    config: Config = payload["config"]
    if payload["source"] in FROM_SCRATCH:
        vocab_size, end_of_text_id = payload["vocabulary"]
        new = build_from_scratch(payload["source"], vocab_size=vocab_size, end_of_text_id=end_of_text_id, seed=SEED)
        if payload["legal"] is not None:
            constrain(new, torch.from_numpy(payload["legal"]))
        return new.to(device)  # type: ignore[arg-type]  # transformers wraps it untyped
    return load_generator(
        payload["source"],
        trust_remote_code=config.model.trust_remote_code,
        allow_pickle=config.model.allow_pickle,
        device=device,
    )


def _discriminator_worker(payload: dict[str, Any]) -> None:
    config: Config = payload["config"]
    settings = config.warmup
    labelled = settings.discriminator  # on rollouts it is warmed up by the loop, from a new head
    if labelled.type == "rollouts":
        labelled = labelled.model_copy(update={"steps": 0})
    worker = _worker(payload["stage"], payload)
    windows, labels = _data(payload)
    vocab_size, _ = payload["vocabulary"]
    model = DISCRIMINATORS[config.discriminator.architecture].new(
        payload["source"],
        config,
        vocab_size=vocab_size,
        pad_token_id=payload["pad_token_id"],
        seed=SEED,
        device=worker.device,
    )
    view = View.configured(config.discriminator, lambda: end_of_text_ids(model.network.config))
    warm_up_discriminator(
        model,
        view.read(windows),
        labels,
        labelled,
        pad_token_id=payload["pad_token_id"],
        precision=config.learner.precision,
        seed=SEED,
        checkpoint_every=settings.checkpoint_every,
        worker=worker,
    )
    if worker.rank == 0:
        with writing(Path(payload["folder"])):
            model.export(Path(payload["folder"]) / "result")


def _data(payload: dict[str, Any]) -> Any:
    data = payload["data"]
    return ray.get(data) if isinstance(data, ray.ObjectRef) else data


def _contrast_worker(payload: dict[str, Any]) -> None:
    worker = _worker(payload["stage"], payload)
    if worker.rank == 0:
        prompts = _data(payload)
        responses = sample_contrast(payload["source"], prompts, payload["config"], seed=SEED, device=str(worker.device))
        save_contrast(responses, Path(payload["folder"]) / "result")


def _worker(name: str, payload: dict[str, Any]) -> Worker:
    """This process's place among Ray Train's workers. Checkpoints stand beside the result: a retry finds them."""
    keep_freed_memory()
    rank, num_workers, device = 0, 1, torch.device("cpu")
    if isinstance(payload["data"], ray.ObjectRef):
        context = ray.train.get_context()
        rank, num_workers = context.get_world_rank(), context.get_world_size()
        device = torch.device(ray.train.torch.get_device())
    saved = Path(payload["folder"]) / "checkpoint"

    def report(progress: Progress) -> None:
        if "report" in payload:
            payload["report"](name, progress)
        elif rank == 0:
            print(
                f"{name} warm-up {progress.step}/{progress.num_steps}: loss {progress.loss:.3f}, "
                f"{progress.tokens_per_second * num_workers:,.0f} tokens/s"
            )

    def checkpoint(write: Callable[[Path], None]) -> None:
        if rank == 0:
            fresh = saved.with_name("checkpoint.partial")
            shutil.rmtree(fresh, ignore_errors=True)
            with writing(fresh):
                fresh.mkdir()
                write(fresh)
                shutil.rmtree(saved, ignore_errors=True)
                fresh.rename(saved)

    several = num_workers > 1
    return Worker(
        rank=rank,
        num_workers=num_workers,
        device=device,
        wrap=ray.train.torch.prepare_model if several else lambda module: module,
        report=report,
        checkpoint=checkpoint,
        resume_from=saved if saved.is_dir() else None,
    )
