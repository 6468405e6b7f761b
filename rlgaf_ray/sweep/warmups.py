"""Prepare the data and the warm-ups that the trials of a sweep share."""

from __future__ import annotations

from collections.abc import Sequence

from rlgaf_ray.actors.warmup import prepare_warmups
from rlgaf_ray.config import Config
from rlgaf_ray.data.task import evaluation_set
from rlgaf_ray.report.console import Terminal
from rlgaf_ray.run.checks import check_lengths
from rlgaf_ray.run.preparation import Data, cache_folder, prepare_data
from rlgaf_ray.sweep.space import warmup_variants
from rlgaf_ray.training.architectures import DISCRIMINATORS


def prepare_variants(config: Config, terminal: Terminal) -> list[tuple[Config, Data]]:
    """Prepare the config and data of every warm-up before Ray starts. Raises ``UserError`` if they do not match."""
    cache, prepared = cache_folder(config), []
    known: dict[str, Data] = {}
    for variant in warmup_variants(config):
        key = variant.model_dump_json(include={"task", "model", "warmup"})  # all that the data depend on
        if key not in known:
            known[key] = prepare_data(variant, cache)
            for note in known[key].notes:
                terminal.on_message(note)
        data = known[key]
        evaluation_set(data.task, variant.evaluation.num_prompts)
        check_lengths(variant, data.task.max_tokens)
        DISCRIMINATORS[variant.discriminator.architecture].check(variant, data.tokenizer, data.task.max_tokens)
        prepared.append((variant, data))
    return prepared


def make_warmups(config: Config, prepared: Sequence[tuple[Config, Data]], terminal: Terminal) -> None:
    """Run every warm-up once; the trials load them from the cache."""
    cache = cache_folder(config)
    for variant, data in prepared:
        with terminal.warming_up():
            warmups = prepare_warmups(variant, data.task, data.tokenizer, cache, terminal.on_warmup)
        terminal.on_message(f"warm-ups {'from the cache' if warmups.cached else 'done'}")
