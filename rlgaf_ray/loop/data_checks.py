"""Checks that a task has the demonstrations that the config needs, before Ray starts."""

from __future__ import annotations

from collections.abc import Sequence

from rlgaf_ray.config.discriminator import BatchNeeds
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.prompts import num_free
from rlgaf_ray.data.task import Task
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.held_out import contrast_without, split_held_out
from rlgaf_ray.training.sft import FEWEST_ROWS


def check_demonstrations(config: Config, task: Task) -> None:
    """Raise ``UserError`` for too few demonstrations, contrast rows or distinct prompts."""
    check_free_prompts(config, task, config.discriminator.needs)
    count, settings = len(task.demonstrations), config.discriminator
    trained, held_out = split_held_out(count, config.held_out_demonstrations)
    if config.warmup.sft.steps == "auto" and count < FEWEST_ROWS:
        raise UserError(
            f"warmup.sft.steps=auto cross-validates on at least {FEWEST_ROWS} demonstrations, but the task has "
            f"{count}: add some, or set warmup.sft.steps to a number"
        )
    if config.warmup.sft.steps and (weight := config.warmup.sft.contrastive_weight) > 0:
        _check_prompts(f"warmup.sft.contrastive_weight={weight:g}", task, range(count), "set it to 0")
    labelled = config.warmup.discriminator
    if labelled.type == "labels" and labelled.steps > 0 and not task.contrast:
        raise UserError(
            f"warmup.discriminator.type=labels needs labelled negatives, but task.name={config.task.name} has none "
            "(for rows: rejected or other prompts' answers): set warmup.discriminator.type=rollouts"
        )
    known = contrast_without(held_out, task.demonstrations, task.contrast)
    if config.generator.active.text == "pairs" and not known:
        raise UserError(
            f"generator.{config.generator.active.key}.rejected=labels needs labelled negatives, but task.name="
            f"{config.task.name} has none to train on (for rows: rejected or other prompts' answers): set it to samples"
        )
    short = any(len(item.response_ids) < config.task.response_tokens for item in task.demonstrations)
    if config.generator.active.text in ("answers", "pairs") and not config.stop_at_end_of_text and short:
        raise UserError(
            f"generator.algorithm={config.generator.algorithm} learns the end of the demonstrations, which "
            "rollout.stop_at_end_of_text=false masks: set it to true"
        )
    if settings.needs.other_prompts:
        _check_prompts(f"discriminator.loss={settings.loss}", task, trained.tolist(), "set another discriminator.loss")
    elif settings.contrast_read == "labels" and not known:
        raise UserError(
            f"discriminator.contrast_weight={settings.contrast_weight:g} needs labelled negatives, but task.name="
            f"{config.task.name} has none to train on (for rows: rejected or other prompts' answers): set it to 0"
        )


def check_free_prompts(config: Config, task: Task, needs: BatchNeeds) -> None:
    """Raise ``UserError`` for a ``rollout.free_prompts`` that the task or the discriminator's loss does not support.

    ``needs``: rows that the discriminator's updates require.
    """
    share, count, settings = config.rollout.free_prompts, config.rollout.prompts_per_iteration, config.discriminator
    if share == 0:
        return
    if not len(task.prompts):
        raise UserError(
            f"rollout.free_prompts={share:g}, but the task has no prompts without answers: set task.jsonl.prompts or "
            "task.hub.prompts, or set it to 0"
        )
    free = num_free(share, count)
    if free == 0:
        raise UserError(
            f"rollout.free_prompts={share:g} of {count} prompts per batch rounds to 0: raise it, or rollout.batch_size"
        )
    if needs.pairs and free == count and settings.updates_per_generator_update > 0:
        raise UserError(
            f"rollout.free_prompts={share:g} leaves no prompt with a demonstration, which "
            f"discriminator.loss={settings.loss} needs for its pairs: lower it, or set another loss"
        )


def _check_prompts(key: str, task: Task, rows: Sequence[int], fix: str) -> None:
    if all(task.other_prompts(row) is not None for row in rows):
        return
    if len({task.demonstrations[row].prompt_ids.tobytes() for row in rows}) < 2:
        raise UserError(
            f"{key} needs two different prompts, but the {len(rows)} training demonstrations share one: {fix}"
        )
