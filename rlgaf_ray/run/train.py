"""``train``: one training run, from the config to the exported models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.actors.placement import find_placement
from rlgaf_ray.actors.recovery import Recoveries, TooManyFailures
from rlgaf_ray.actors.warmup import prepare_warmups
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.storage import writing
from rlgaf_ray.data.task import TaskSource, evaluation_set
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.callback import Callback, Callbacks
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.data_checks import check_demonstrations
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.loop.reward_functions import RewardFunction, reward_functions, with_rewards
from rlgaf_ray.loop.rewards import RewardFailed
from rlgaf_ray.loop.roles import Roles
from rlgaf_ray.loop.run_folder import CONFIG, RunFolder
from rlgaf_ray.run.checks import check_before_start, check_lengths
from rlgaf_ray.run.preparation import (
    Prepared,
    cache_folder,
    prepare_data,
    python_task,
    what_is_learned_from,
    with_date,
    with_name,
    with_task,
)
from rlgaf_ray.run.provenance import check_provenance, of_inputs, of_warmups
from rlgaf_ray.run.restarts import report_damaged_checkpoints, run_with_recovery
from rlgaf_ray.run.session import (
    explain_storage_errors,
    export,
    local_roles,
    open_run_folder,
    ray_roles,
)
from rlgaf_ray.tracking.base import Tracker
from rlgaf_ray.tracking.build import make_trackers
from rlgaf_ray.training.algorithm import AlgorithmFactory
from rlgaf_ray.training.algorithms import configured_algorithm
from rlgaf_ray.training.architectures import DISCRIMINATORS
from rlgaf_ray.training.discriminator import DiscriminatorFactory
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator


def train(
    config: Config,
    *,
    resume: bool = False,
    other_versions: bool = False,
    task: TaskSource | None = None,
    rewards: Mapping[Any, float] | Iterable[RewardFunction] = (),
    discriminator: DiscriminatorFactory = NeuralDiscriminator,
    algorithm: AlgorithmFactory = configured_algorithm,
    callbacks: Iterable[Callback] = (),
    trackers: Sequence[str | Tracker] = (),
    roles: Literal["local"] | Callable[[Prepared], Roles] | None = None,
) -> Outcome:
    """Train as configured, in any thread.

    Args:
        resume: Resume the run in ``run.root``/``run.name``. Raises ``UserError`` if the data, the model, or the
            versions of the package and its libraries differ from those that the run started with.
        other_versions: Resume with other versions nevertheless; the results may differ from an uninterrupted run's.
        task: Replaces the data of ``task.name`` (docs/tasks.md); the lengths in the config's ``task`` still apply.
        rewards: Weights of ``"discriminator"``, of functions in ``reward.functions`` (by name), and of functions with
            TRL's signature (``RewardFunction``); or a list of functions, each with weight 1. A reward that is not
            listed keeps the config's weight.
        discriminator: Builds the discriminator in its own process (``DiscriminatorFactory``); by default the network
            ``discriminator.architecture``. On Ray it must be importable or picklable.
        algorithm: Builds the algorithm in the learner's process (``AlgorithmFactory``); by default
            ``generator.algorithm``. A custom algorithm still gets that algorithm's config section. On Ray it must be
            importable or picklable.
        callbacks: Observe the run and can stop it (``Callback.stop_requested``).
        trackers: Log the metrics in addition to ``tracking.to``: names, ``module:Class`` or instances.
        roles: By default actors on Ray; ``"local"``: all roles in this process, on CPU, without Ray; or a function
            that builds them.

    Raises:
        UserError: For errors that the user can fix; before anything expensive starts, if possible.
    """
    task = python_task(config, task)
    config = config if task is None else with_task(config, task)
    config, functions = with_rewards(with_name(config), rewards)
    calls = Callbacks(callbacks)
    folder = RunFolder(config.run)
    checkpoints = Checkpoints(folder.place / "checkpoints", keep=config.checkpoint.keep, flush=folder.flush)
    check_before_start(config)
    make_trackers([*config.tracking.to, *trackers])  # fail before anything expensive starts
    functions = reward_functions(config.reward, functions)
    with folder.claimed():
        resumed = open_run_folder(folder, checkpoints, resume=resume)
        if resumed:
            report_damaged_checkpoints(resumed, calls.on_message)
            calls.on_message(f"resuming from {resumed[0]}")
        config = with_date(config, folder.local / CONFIG)
        cache = cache_folder(config)
        with explain_storage_errors(config, checkpoints):
            data = prepare_data(config, cache, task)
        if data.task.counts is not None and (sentence := data.task.counts.sentence()):
            calls.on_message(sentence)
        evaluation_set(data.task, config.evaluation.num_prompts)
        check_demonstrations(config, data.task)
        check_lengths(config, data.task.max_tokens)
        DISCRIMINATORS[config.discriminator.architecture].check(config, data.tokenizer, data.task.max_tokens)
        if resumed:
            check_provenance(resumed[0], resumed[1], of_inputs(config, data.task), other_versions=other_versions)
        for note in data.notes:
            calls.on_message(note)
        calls.on_message(what_is_learned_from(config, data.task))

        started = time.perf_counter()
        with folder.mirrored(), explain_storage_errors(config, checkpoints):
            with ray_session(config) if roles is None else nullcontext():
                placement = find_placement(config) if roles is None else None
                with calls.warming_up():
                    warmups = prepare_warmups(
                        config, data.task, data.tokenizer, cache, calls.on_warmup, with_ray=roles is None
                    )
                seconds = time.perf_counter() - started
                calls.on_message(f"warm-ups {'from the cache' if warmups.cached else 'done'} in {seconds:.0f} s")
                if resumed:
                    check_provenance(resumed[0], resumed[1], of_warmups(warmups))
                prepared = Prepared(config, data, warmups, discriminator, algorithm, functions)

                def build_roles(recoveries: Recoveries) -> Roles:
                    if placement is not None:
                        return ray_roles(prepared, placement, calls, recoveries=recoveries)
                    assert roles is not None
                    return local_roles(prepared) if isinstance(roles, str) else roles(prepared)

                try:
                    outcome = run_with_recovery(prepared, build_roles, checkpoints, calls, resumed, trackers)
                except (TooManyFailures, RewardFailed) as error:
                    hint = f"{checkpoints.intact()}: continue with --resume {config.run.again}"
                    raise UserError(f"{error}; {hint}") from error
            with writing(folder.local):
                export(prepared, checkpoints, outcome)
            calls.on_end(outcome)
        return outcome
