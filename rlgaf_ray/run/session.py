"""Set the loop up on prepared data and models: its roles, the run's files and the export."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from rlgaf_ray.actors.contrast import load_contrast
from rlgaf_ray.actors.placement import Placement, PlacementGroup
from rlgaf_ray.actors.recovery import Recoveries
from rlgaf_ray.actors.roles import RayRoles
from rlgaf_ray.config import dump_config
from rlgaf_ray.config.hidden import public_values
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.handover import CHECKSUMS
from rlgaf_ray.data.remote import Remote, StorageError
from rlgaf_ray.data.storage import Place, copy_tree, replace_text, writing
from rlgaf_ray.data.task import evaluation_set
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.loop.adversarial import AdversarialLoop
from rlgaf_ray.loop.callback import Callback, Callbacks
from rlgaf_ray.loop.checkpoint import PROVENANCE, Checkpoints
from rlgaf_ray.loop.local import LocalRoles
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.loop.roles import Roles
from rlgaf_ray.loop.run_folder import RunFolder
from rlgaf_ray.models.lora import ADAPTERS
from rlgaf_ray.report.console import write_samples
from rlgaf_ray.report.runs import SAMPLES, save_samples
from rlgaf_ray.run.preparation import Prepared, cache_folder, prepare_evaluator
from rlgaf_ray.run.provenance import CHATS, DATA_FILE, SPLITS, Provenance, of_inputs, of_warmups
from rlgaf_ray.tracking.base import Tracker
from rlgaf_ray.tracking.build import open_trackers
from rlgaf_ray.training.export import export_merged

Resumed = tuple[Place, dict[str, Any], list[str]]  # a checkpoint, its state, the damage of later checkpoints


def open_run_folder(folder: RunFolder, checkpoints: Checkpoints, *, resume: bool) -> Resumed | None:
    """Fetch the run folder; returns the checkpoint to resume from, or None for a new run.

    Raises ``UserError`` if there is nothing to resume, or if a new run's folder exists.
    """
    exists = folder.exists()
    if resume:
        if not exists:
            raise UserError(f"nothing to resume: {folder.shown} does not exist: check run.root and run.name")
        folder.fetch()
        return checkpoints.newest_usable()
    if exists:
        raise UserError(f"{folder.shown} exists: add --resume to continue that run, or choose another run.name")
    folder.fetch()
    return None


def ray_roles(
    prepared: Prepared,
    placement: Placement,
    callbacks: Callbacks,
    *,
    group: PlacementGroup | None = None,
    recoveries: Recoveries | None = None,
) -> RayRoles:
    """Start one actor per role and rank; Ray must be connected."""
    config, data, warmups = prepared.config, prepared.data, prepared.warmups
    with callbacks.waiting(f"starting {actors_of(config, placement)}"):
        roles = RayRoles(
            warmups.generator,
            warmups.discriminator,
            config,
            placement,
            max_tokens=data.task.max_tokens,
            pad_token_id=data.tokenizer.pad_token_id,
            base_folder=warmups.base,
            new_discriminator=prepared.discriminator,
            new_algorithm=prepared.algorithm,
            group=group,
            recoveries=recoveries,
        )
    callbacks.on_message(str(roles.transfer))
    return roles


def local_roles(prepared: Prepared) -> LocalRoles:
    """Build all roles in this process, without Ray."""
    data, warmups = prepared.data, prepared.warmups
    return LocalRoles.build(
        warmups.generator,
        warmups.discriminator,
        prepared.config,
        max_tokens=data.task.max_tokens,
        pad_token_id=data.tokenizer.pad_token_id,
        base_folder=warmups.base,
        new_discriminator=prepared.discriminator,
        new_algorithm=prepared.algorithm,
    )


@contextmanager
def open_loop(
    prepared: Prepared,
    roles: Roles,
    checkpoints: Checkpoints,
    callbacks: Iterable[Callback] = (),
    resumed: Resumed | None = None,
    *,
    trackers: Sequence[str | Tracker] = (),
    evaluator: Evaluator | None = None,
    build_loop: Callable[..., AdversarialLoop] = AdversarialLoop,
) -> Iterator[AdversarialLoop]:
    """Build the loop over these roles, with its run folder and trackers, which are closed with the block.

    ``trackers`` are added to those of ``tracking.to``; ``evaluator`` is by default built from the config. The caller
    closes the roles.
    """
    config, data, warmups, calls = prepared.config, prepared.data, prepared.warmups, Callbacks(callbacks)
    if evaluator is None:
        with calls.waiting("preparing the evaluation"):
            evaluator = prepare_evaluator(config, data, cache_folder(config), report=calls.on_message)
    start = resumed[1]["iteration"] if resumed else 0
    provenance = {**of_inputs(config, data.task), **of_warmups(warmups)}
    write_run_files(prepared, provenance)
    with open_trackers(config, config.run.folder, trackers, start=start, report=calls.on_message) as opened:
        contrast = warmups.contrast and load_contrast(warmups.contrast, data.task.demonstrations)
        loop = build_loop(
            config, roles, data.task, data.tokenizer, evaluator, opened, checkpoints, calls, prepared.rewards, contrast
        )
        loop.provenance = provenance
        with closing(loop.train_step.rewards):
            if resumed:
                with calls.waiting(f"loading iteration {start} into the actors"):
                    loop.resume(resumed[0], resumed[1])
            yield loop


@contextmanager
def explain_storage_errors(config: Config, checkpoints: Checkpoints) -> Iterator[None]:
    """Add to a ``StorageError`` which checkpoint is intact and how to resume."""
    try:
        yield
    except StorageError as error:
        if not RunFolder(config.run).written:  # the run has not started; it only wrote to the cache
            raise StorageError(f"{error}: fix the storage and start the run again") from error
        remote = isinstance(checkpoints.folder, Remote)  # which may be unreachable now
        intact = "earlier checkpoints are intact" if remote else checkpoints.intact()
        raise StorageError(
            f"{error}; {intact}: fix the storage and continue with --resume {config.run.again}"
        ) from error


def write_run_files(prepared: Prepared, provenance: Provenance) -> None:
    """Write the resolved config, and what the run is trained on, into the run's folder."""
    config = prepared.config
    folder = config.run.folder
    task, settings = prepared.data.task, public_values(config.task.model_dump(mode="json"))
    described = {SPLITS: task.checksum, "task": settings, CHATS: task.chats, PROVENANCE: dict(provenance)}
    if task.counts is not None:
        described["rows"] = task.counts.described()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "config.yaml", dump_config(config))
        replace_text(folder / DATA_FILE, json.dumps(described))


def export(prepared: Prepared, checkpoints: Checkpoints, outcome: Outcome) -> None:
    """Write both models as Hugging Face folders, and the samples, if the trained generator was evaluated.

    With ``generator.average_decay`` the exported generator is the moving average, as evaluated; checkpoints hold both.
    """
    config, data, warmups = prepared.config, prepared.data, prepared.warmups
    folder, place = config.run.folder, outcome.folder
    latest = checkpoints.named("latest")
    if latest is not None:
        generator = "learner/average" if config.generator.average_decay > 0 else "learner/generator"
        for source, target in ((generator, "generator"), ("discriminator", "discriminator")):
            copy_tree(latest / source, place / target, without=("optimizer.*", "replay.*", ADAPTERS, f"{CHECKSUMS}*"))
            data.tokenizer.save_pretrained(folder / target)
        if config.model.lora.rank > 0:
            bases = {"generator": warmups.generator, "discriminator": warmups.discriminator}
            export_merged(config, latest, folder, **bases, pad_token_id=data.tokenizer.pad_token_id)
    if outcome.last:
        write_samples(folder / "samples.md", outcome.samples_before, outcome.samples_after, outcome.evaluated)
        save_samples(folder / SAMPLES, outcome.samples_before, outcome.samples_after)
    checkpoints.flush()


def actors_of(config: Config, placement: Placement) -> str:
    """Describe the actors of a run, such as "2 rollout workers (vllm), the discriminator and the learner"."""
    num_workers = len(placement.rollout_bundles)
    groups = [
        f"the {name}" if len(bundles) == 1 else f"{len(bundles)} ranks of the {name}"
        for name, bundles in (
            ("discriminator", placement.discriminator_bundles),
            ("learner", placement.learner_bundles),
        )
    ]
    workers = f"{num_workers} rollout worker{'s' if num_workers > 1 else ''} ({config.rollout.engine})"
    return f"{workers}, {' and '.join(groups)}"


def first_wait(config: Config, loop: AdversarialLoop) -> str:
    """Describe the loop's work before its first metrics."""
    if loop.iteration > 0:
        return f"iteration {loop.iteration + 1}"
    asked, count = config.evaluation.num_prompts, len(evaluation_set(loop.task, config.evaluation.num_prompts))
    everything = "" if count == asked else f", all of the validation split (evaluation.num_prompts={asked:,})"
    evaluation = f"evaluating the initial policy on {count:,} prompts{everything}"
    updates = config.discriminator_warmup_updates
    return (
        f"warming up the discriminator with {updates} updates on rollouts, then {evaluation}" if updates else evaluation
    )
