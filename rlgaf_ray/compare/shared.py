"""Warm up the discriminator on rollouts once for all methods that start with the same one."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from rlgaf_ray.actors.warmup import Warmups
from rlgaf_ray.config import Config
from rlgaf_ray.config.compose import leaves
from rlgaf_ray.data.cache import content_hash, made_once
from rlgaf_ray.data.storage import writing
from rlgaf_ray.loop.adversarial import AdversarialLoop
from rlgaf_ray.loop.local import LocalRoles
from rlgaf_ray.training.precision import processor_type

STATE = "warmup.json"
SECTIONS = {"task", "model", "warmup", "discriminator", "rollout", "learner"}
IGNORED = {  # keys of these sections that the warm-up does not read
    "discriminator.updates_per_generator_update",
    "discriminator.update_ratio",
    "discriminator.overfit_gap",
    "rollout.batch_size",
    "warmup.discriminator.rollouts",
}


def warm_up(loop: AdversarialLoop, roles: LocalRoles, config: Config, warmups: Warmups, root: Path) -> float:
    """Warm up the discriminator of ``loop``, or load the warm-up of an earlier trial with the same settings.

    ``root``: folder of the trials that share it. Returns the seconds that were saved.
    """
    folder = root / "warmups" / _key(config, warmups)[:16]
    step, started = loop.train_step, time.perf_counter()
    with made_once(folder):
        if not folder.is_dir():
            loop.push()
            loop.warm_up_discriminator()
            state = {
                "seconds": time.perf_counter() - started,
                "version": step.discriminator_version,
                "streams": step.draws.state_dict(),
            }
            _save(folder, roles, state)
            return 0.0
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    roles.discriminator.load(folder / "discriminator", version=state["version"])
    step.discriminator_version = state["version"]
    # The stream of the generator's text depends on the method, and the warm-up does not advance it.
    text = step.draws.state_dict()["pretraining"]
    step.draws.load_state_dict(state["streams"] | {"pretraining": text})
    return float(state["seconds"]) - (time.perf_counter() - started)


def _save(folder: Path, roles: LocalRoles, state: dict[str, Any]) -> None:
    partial = folder.with_name(folder.name + ".partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
        partial.mkdir(parents=True)
        roles.discriminator.save(partial / "discriminator")
        (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
        partial.rename(folder)


def _key(config: Config, warmups: Warmups) -> str:
    """Hash what the warm-up depends on: the models, with their data and settings, and the keys that it reads."""
    models = [warmups.generator.name, warmups.discriminator.name, str(warmups.contrast and warmups.contrast.name)]
    return content_hash([processor_type(), *models, *keys_read(config)])


def keys_read(config: Config) -> list[str]:
    """Return the values that the warm-up reads: of keys, and those that follow from keys it does not read itself."""
    settings = config.discriminator
    scheduled = settings.learning_rate_schedule != "constant"
    derived = {
        "seed": config.run.seed,
        "updates": config.discriminator_warmup_updates,
        "rollouts": config.discriminator_warmup_rollouts,
        "held_out": config.held_out_demonstrations,
        "schedule": config.run.iterations * settings.updates_per_generator_update if scheduled else None,
    }
    dumped = config.model_dump(mode="json", include=SECTIONS)
    return [str(derived)] + [
        f"{'.'.join(key)}={value}"
        for key, value in leaves(dumped)
        if not any(".".join(key[: each.count(".") + 1]) == each for each in IGNORED)
    ]
