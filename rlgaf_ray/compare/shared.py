"""Warm up the discriminator on rollouts once for all methods that start with the same one."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from rlgaf_ray.actors.warmup import FORMAT, Warmups
from rlgaf_ray.config import Config
from rlgaf_ray.config.compose import leaves
from rlgaf_ray.data.cache import content_hash, made_once
from rlgaf_ray.data.storage import writing
from rlgaf_ray.loop.adversarial import AdversarialLoop
from rlgaf_ray.loop.local import LocalRoles

STATE = "warmup.json"
SECTIONS = {"task", "model", "warmup", "discriminator", "rollout", "learner"}
UNREAD = {  # keys of these sections that the warm-up does not read
    "discriminator.updates_per_generator_update",
    "discriminator.update_ratio",
    "discriminator.overfit_gap",
    "rollout.batch_size",
    "rollout.free_prompts",
    "warmup.discriminator.rollouts",  # None follows rollout.batch_size: the key has the effective number
}


def warm_up(loop: AdversarialLoop, roles: LocalRoles, config: Config, warmups: Warmups, cache: Path) -> float:
    """Warm up the discriminator of ``loop``, or load the warm-up of an earlier trial with the same settings.

    Returns the seconds that were saved.
    """
    folder = cache / "warmups" / f"rollouts-{_key(config, warmups)[:16]}"
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
    # Which text the generator reads beside its rollouts depends on the method; the warm-up draws none of it.
    text = step.draws.state_dict()["pretraining"]
    step.draws.load_state_dict(state["streams"] | {"pretraining": text})
    return float(state["seconds"]) - (time.perf_counter() - started)


def _save(folder: Path, roles: LocalRoles, state: dict[str, Any]) -> None:
    partial = folder.with_name(folder.name + ".partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)  # of a kill
        partial.mkdir(parents=True)
        roles.discriminator.save(partial / "discriminator")
        (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
        partial.rename(folder)


def _key(config: Config, warmups: Warmups) -> str:
    """Hash what the warm-up depends on: the models, with their data and settings, and the keys that it reads."""
    models = [warmups.generator.name, warmups.discriminator.name, str(warmups.contrast and warmups.contrast.name)]
    return content_hash([str(FORMAT), *models, *keys_read(config)])


def keys_read(config: Config) -> list[str]:
    """Return the keys and values that the warm-up reads. With a learning rate schedule it reads all keys."""
    scheduled = config.discriminator.learning_rate_schedule != "constant"
    dumped = config.model_dump(mode="json", include=None if scheduled else SECTIONS)
    counts = (config.run.seed, config.discriminator_warmup_updates, config.discriminator_warmup_rollouts)
    return [str(counts)] + [
        f"{'.'.join(key)}={value}"
        for key, value in leaves(dumped)
        if scheduled or not any(".".join(key[: each.count(".") + 1]) == each for each in UNREAD)
    ]
