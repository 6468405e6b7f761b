"""Train one method on one replicate and measure it with every decoding on both parts, in one process."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from rlgaf_ray.actors.warmup import prepare_warmups
from rlgaf_ray.compare.budget import num_rollouts
from rlgaf_ray.compare.configs import method_config, method_of
from rlgaf_ray.compare.decoding import decodings
from rlgaf_ray.compare.guidance import GuidedEngine, Labels
from rlgaf_ray.compare.likelihood import Likelihood
from rlgaf_ray.compare.measuring import Measured, Measuring
from rlgaf_ray.compare.posterior import Posterior
from rlgaf_ray.compare.shared import warm_up
from rlgaf_ray.config import Config, with_values
from rlgaf_ray.config.compare import MethodName
from rlgaf_ray.data.cache import write_atomically
from rlgaf_ray.data.task import Task
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.reward_functions import RewardFunction, with_rewards
from rlgaf_ray.run.checks import check_before_start
from rlgaf_ray.run.preparation import Data, Prepared, cache_folder, prepare_data, prepare_evaluator
from rlgaf_ray.run.session import local_roles, open_loop
from rlgaf_ray.training.precision import processor_type
from rlgaf_ray.types import EVALUATION_PARTS, EvaluationPart, PolicyNetwork


@dataclass(frozen=True)
class Trial:
    method: MethodName
    replicate: int
    parts: dict[EvaluationPart, list[Measured]]
    rollouts: int  # sampled for training
    seconds: dict[str, float]  # per stage; "training" includes the discriminator's warm-up, also where it was shared
    candidates: int  # sampled per answer
    sft_steps: int | Literal["auto"]  # of the model that was measured or trained further
    processor: str = "unknown"
    guidance: float | None = None  # weight of the guidance by label tokens

    def save(self, path: Path) -> None:
        def write(temporary: Path) -> None:
            temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")

        write_atomically(path, write)

    @classmethod
    def load(cls, path: Path) -> Trial:
        tree = json.loads(path.read_text(encoding="utf-8"))
        parts = {part: [Measured(**each) for each in found] for part, found in tree.pop("parts").items()}
        return cls(parts=parts, **tree)


def run_trial(config: Config, name: MethodName, replicate: int, folder: Path) -> Trial:
    """Train and measure one method with all roles in this process. ``folder``: ``run.root`` of the training run.

    With ``compare.sft_steps``, supervised methods are trained up to each step count, and ``label_token`` is measured
    with each weight of ``compare.guidance``; returns the trial with the best validation quality.
    """
    torch.set_num_threads(1)
    config = method_config(config, name, replicate)
    run = config.run.model_copy(update={"root": str(folder), "name": f"{name}-{replicate}"})
    config = config.model_copy(update={"run": run})
    check_before_start(config)
    data = prepare_data(config, cache_folder(config))
    configs = [with_values(config, keys) for keys in method_of(config, name).options(config)]
    if len(configs) == 1:
        return _run(configs[0], data, name, replicate, EVALUATION_PARTS)
    with TemporaryDirectory() as state:
        tried = [_run(each, data, name, replicate, ["validation"], Path(state)) for each in configs]
    qualities = [max(each.quality for each in trial.parts["validation"]) for trial in tried]
    row = int(np.argmax(qualities))
    best, tested = tried[row], _run(configs[row], data, name, replicate, ["test"])  # its SFT model is cached
    seconds = {stage: sum(trial.seconds[stage] for trial in [*tried, tested]) for stage in best.seconds}
    return replace(best, parts=best.parts | tested.parts, seconds=seconds)


def _run(
    config: Config,
    data: Data,
    name: MethodName,
    replicate: int,
    measured: Sequence[EvaluationPart],
    sft_state: Path | None = None,
) -> Trial:
    """Train one method and measure it on these parts. ``config``: the method's own."""
    method, started = method_of(config, name), time.perf_counter()
    cache = cache_folder(config)
    rewards: Mapping[str, RewardFunction] = {}
    if method.scorer == "verdict":
        config, rewards = with_rewards(config, {verdict_of(data.task): 1.0})
    labels = Labels(data.tokenizer) if method.answering.guided else None
    warmups = prepare_warmups(
        config,
        data.task,
        data.tokenizer,
        cache,
        lambda stage, progress: None,
        with_ray=False,
        sft_rows=None if labels is None else labels.rows(data.task),
        sft_state=sft_state,
    )
    prepared = Prepared(config, data, warmups, rewards=rewards)
    if method.scorer == "posterior":

        def posterior(folder: Path, config: Config, **options: Any) -> Posterior:
            return Posterior(warmups.generator, data.task, config, **options)

        prepared = replace(prepared, discriminator=posterior)
    seconds = {"warm-ups": time.perf_counter() - started}
    network: PolicyNetwork = "policy"
    version, saved = 0, 0.0
    with closing(local_roles(prepared)) as roles:
        if method.trains != "nothing":
            checkpoints = Checkpoints(config.run.folder / "checkpoints", keep=1)
            quick = config.evaluation.model_copy(update={"embeddings": False})
            evaluator = prepare_evaluator(config.model_copy(update={"evaluation": quick}), data, cache)
            with open_loop(prepared, roles, checkpoints, evaluator=evaluator) as loop:
                if config.discriminator_warmup_updates:
                    saved = warm_up(loop, roles, config, warmups, Path(config.run.root))
                if method.trains == "generator":
                    version = loop.run().iteration
                    network = "average" if config.generator.average_decay > 0 else "policy"
        roles.push_weights(version, network=network)()
        trained = time.perf_counter()
        seconds["training"] = trained - started - seconds["warm-ups"] + saved
        engine = base = guidance = None
        if labels is not None:
            guidance = config.compare.guidance[0]
            engine = GuidedEngine(warmups.generator, labels, guidance, config)
        if config.reward.base_logprob > 0 and method.answering.candidates > 1:
            base = Likelihood(warmups.base, config, pad_token_id=data.tokenizer.pad_token_id)
        measuring = Measuring(config, data, roles, method.answering, engine=engine, base=base)
        parts = {part: [measuring(part, each) for each in decodings(config.compare)] for part in measured}
    seconds["measuring"] = time.perf_counter() - trained
    steps = config.warmup.sft.steps
    return Trial(
        name,
        replicate,
        parts,
        num_rollouts(config, method),
        seconds,
        method.answering.candidates,
        steps,
        processor_type(),
        guidance,
    )


def verdict_of(task: Task) -> RewardFunction:
    """Return the task's verdict as a reward function. Raises ``UserError`` if it has none."""
    verdict = getattr(task, "verdict", None)
    if verdict is None:
        raise UserError(
            f"compare.methods: verdict needs a task with an exact verdict, but {type(task).__name__} has "
            "none: remove verdict from compare.methods"
        )
    return verdict
