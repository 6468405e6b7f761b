"""The training functions of the warm-ups, for a Ray Train worker or for the calling process.

``payload`` holds the config, the stage's name, its data (or an object reference), its source model and its folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train.torch
import torch
from transformers import PreTrainedModel

from rlgaf_ray.actors.contrast import sample_contrast, save_contrast
from rlgaf_ray.config.model import FROM_SCRATCH
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.lengths import View
from rlgaf_ray.data.storage import writing
from rlgaf_ray.models.ends import set_ends
from rlgaf_ray.models.folder import save_network
from rlgaf_ray.models.generator import build_from_scratch, end_of_text_ids, load_generator
from rlgaf_ray.models.legal import constrain
from rlgaf_ray.models.vocabulary import UNUSED
from rlgaf_ray.training.architectures import DISCRIMINATORS
from rlgaf_ray.training.memory import keep_freed_memory
from rlgaf_ray.training.sft import choose_steps, fine_tune
from rlgaf_ray.training.warmup import WarmupProgress, Worker, warm_up_discriminator, warm_up_generator

SEED = 0  # fixed, so that runs with different seeds share one warm-up


def generator_worker(payload: dict[str, Any]) -> None:
    """Pretrain the generator (the base warm-up) and save it."""
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
    if payload["legal"] is not None:  # only after training: a constrained model would not learn the rules
        constrain(model, torch.from_numpy(payload["legal"]))
    _write_generator(model, settings.steps, payload, worker)


def sft_worker(payload: dict[str, Any]) -> None:
    """Fine-tune the generator on the demonstrations (SFT), with the random seed ``run.seed``."""
    config: Config = payload["config"]
    worker = _worker(payload["stage"], payload)
    (demonstrations, others), settings = _data(payload), config.warmup.sft
    precision, seed = config.learner.precision, config.run.seed
    make_model = partial(_generator, payload, worker.device)
    if settings.steps == "auto":
        steps = choose_steps(
            make_model,
            demonstrations,
            settings,
            precision=precision,
            seed=seed,
            worker=worker,
            other_prompts=others,
        )
        settings = settings.model_copy(update={"steps": worker.agreed(steps)})
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
        other_prompts=others,
        keep_state=payload["state"] is not None,
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
        return new.to(device)  # type: ignore[arg-type]  # transformers wraps it untyped
    return load_generator(
        payload["source"],
        trust_remote_code=config.model.trust_remote_code,
        allow_pickle=config.model.allow_pickle,
        device=device,
    )


def discriminator_worker(payload: dict[str, Any]) -> None:
    """Train the discriminator on labelled windows and export it."""
    config: Config = payload["config"]
    settings = config.warmup
    labelled = settings.discriminator  # warm-up on rollouts happens in the loop, from a new head
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


def contrast_worker(payload: dict[str, Any]) -> None:
    """Sample the base model's responses on rank 0 and save them."""
    worker = _worker(payload["stage"], payload)
    if worker.rank == 0:
        prompts = _data(payload)
        responses = sample_contrast(payload["source"], prompts, payload["config"], seed=SEED, device=str(worker.device))
        save_contrast(responses, Path(payload["folder"]) / "result")


def _worker(name: str, payload: dict[str, Any]) -> Worker:
    """Describe this process as a warm-up worker.

    Its checkpoints are next to the result or in the payload's ``state``, so that a retry resumes.
    """
    keep_freed_memory()
    rank, num_workers, device = 0, 1, torch.device("cpu")
    if isinstance(payload["data"], ray.ObjectRef):
        context = ray.train.get_context()
        rank, num_workers = context.get_world_rank(), context.get_world_size()
        device = torch.device(ray.train.torch.get_device())
    saved = Path(payload.get("state") or payload["folder"]) / "checkpoint"

    def report(progress: WarmupProgress) -> None:
        if "report" in payload:
            payload["report"](name, progress)
        elif rank == 0:
            print(
                f"{progress.name(name)} {progress.step}/{progress.num_steps}: loss {progress.loss:.3f}, "
                f"{progress.tokens_per_second * num_workers:,.0f} tokens/s"
            )

    def checkpoint(write: Callable[[Path], None]) -> None:
        if rank == 0:
            partial_folder = saved.with_name("checkpoint.partial")
            shutil.rmtree(partial_folder, ignore_errors=True)
            with writing(partial_folder):
                partial_folder.mkdir()
                write(partial_folder)
                shutil.rmtree(saved, ignore_errors=True)
                partial_folder.rename(saved)

    distributed = num_workers > 1
    return Worker(
        rank=rank,
        num_workers=num_workers,
        device=device,
        wrap=ray.train.torch.prepare_model if distributed else lambda module: module,
        report=report,
        checkpoint=checkpoint,
        resume_from=saved if saved.is_dir() else None,
    )
