"""Sampling of the data for each iteration: prompts, demonstrations, contrast rows and real text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlgaf_ray.config.discriminator import BatchNeeds
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.collate import demonstration_blocks
from rlgaf_ray.data.prompts import MixedPromptStream, PromptStream
from rlgaf_ray.data.task import Task
from rlgaf_ray.loop.data_checks import check_free_prompts
from rlgaf_ray.loop.held_out import contrast_without, split_held_out
from rlgaf_ray.types import Demonstration, Prompt, Rollout, ScoredRollout, TextBlocks


class Draws:
    """Resumable streams of training rows, seeded by ``run.seed``; held-out rows are never drawn."""

    def __init__(
        self, config: Config, task: Task, needs: BatchNeeds, contrast: Sequence[Demonstration] | None = None
    ) -> None:
        """``needs``: rows that the discriminator's updates require.

        ``contrast``: its contrast rows, by default the task's labelled negatives.
        """
        self.config = config
        self.task = task
        self.needs = needs
        self.trained_rows, self.held_out_rows = split_held_out(len(task.demonstrations), config.held_out_demonstrations)
        labelled = contrast_without(self.held_out_rows, task.demonstrations, task.contrast)
        if contrast is None:
            self.contrast_rows = labelled
        else:
            self.contrast_rows = contrast_without(self.held_out_rows, task.demonstrations, contrast)
        self.text: TextBlocks | None = None
        self.negatives = labelled if config.generator.active.text == "pairs" else []
        self.negatives_of: dict[bytes, list[Demonstration]] = {}
        for item in self.negatives:
            self.negatives_of.setdefault(item.prompt_ids.tobytes(), []).append(item)
        match config.generator.active.text:
            case "pretraining":
                self.text = task.warmup_blocks(config.task.prompt_tokens + config.task.response_tokens)
            case "demonstrations":
                self.text = demonstration_blocks([task.demonstrations[row] for row in self.trained_rows])
        sizes = {
            "prompts": len(self.trained_rows),
            "real": len(self.trained_rows),
            "contrast": max(1, len(self.contrast_rows)),
            "pretraining": max(1, len(self.negatives if self.text is None else self.text)),
            "others": len(self.trained_rows),
        }
        seeds = [
            int(np.random.SeedSequence([config.run.seed, index]).generate_state(1)[0])
            for index in range(len(sizes) + 1)
        ]
        share = config.rollout.free_prompts
        check_free_prompts(config, task, needs)
        self.prompt_stream = MixedPromptStream(
            sizes.pop("prompts"), len(task.prompts), share=share, seed=seeds[0], free_seed=seeds[-1]
        )
        self.streams = {
            name: PromptStream(num_items, seed)
            for (name, num_items), seed in zip(sizes.items(), seeds[1:-1], strict=True)
        }

    def prompts(self) -> list[Prompt]:
        """Return the prompts of the next batch; those without demonstrations come last, with ids after all others."""
        rows = self.prompt_stream.next(self.config.rollout.prompts_per_iteration)
        own, free = rows[rows < len(self.trained_rows)], rows[rows >= len(self.trained_rows)] - len(self.trained_rows)
        demonstrations, prompts = self.task.demonstrations, self.task.prompts
        return self._prompts_of(own) + [Prompt(len(demonstrations) + row, prompts[row]) for row in free.tolist()]

    def warmup_prompts(self) -> list[Prompt]:
        """Return the prompts of a batch of the discriminator's warm-up: only those with demonstrations."""
        count = self.config.discriminator_warmup_rollouts // self.config.rollout.samples_per_prompt
        return self._prompts_of(self.prompt_stream.own(count))

    def _prompts_of(self, rows: np.ndarray) -> list[Prompt]:
        """Prompts of the demonstrations at these positions of ``trained_rows``."""
        return [Prompt(row, self.task.demonstrations[row].prompt_ids) for row in self.trained_rows[rows].tolist()]

    def comparable(self, scored: Sequence[ScoredRollout]) -> Sequence[ScoredRollout]:
        """Rollouts that a discriminator update can use: a pairwise loss needs the demonstration of their prompt."""
        if not self.needs.pairs:
            return scored
        return [item for item in scored if item.rollout.prompt_id < len(self.task.demonstrations)]

    def real(self, rollouts: Sequence[Rollout]) -> list[Demonstration]:
        """Draw the demonstrations of one discriminator update on these rollouts."""
        demonstrations = self.task.demonstrations
        if self.needs.pairs:
            return [demonstrations[rollout.prompt_id] for rollout in rollouts]
        return [
            demonstrations[row] for row in self.trained_rows[self._next("real", self.config.discriminator.batch_size)]
        ]

    def contrast(self, rollouts: Sequence[Rollout]) -> list[Demonstration]:
        """Draw the contrast rows of the same update; empty without contrast."""
        if self.needs.other_prompts:
            return self._under_other_prompts(rollouts, self.needs.other_prompts)
        if not self.needs.contrast or not self.contrast_rows:
            return []
        count = len(rollouts) if self.needs.pairs else self.config.discriminator.batch_size
        return [self.contrast_rows[row] for row in self._next("contrast", count)]

    def _under_other_prompts(self, rollouts: Sequence[Rollout], num_prompts: int) -> list[Demonstration]:
        """Pair the rollouts' demonstrations with other prompts: ``num_prompts`` blocks of one row per rollout."""
        demonstrations = self.task.demonstrations
        own = [demonstrations[rollout.prompt_id] for rollout in rollouts]
        moved = []
        for _ in range(num_prompts):
            for rollout, item, row in zip(rollouts, own, self._next("others", len(own)), strict=True):
                moved.append(Demonstration(self._wrong_prompt(rollout.prompt_id, int(row)), item.response_ids))
        return moved

    def _wrong_prompt(self, own: int, drawn: int) -> np.ndarray:
        """Choose a prompt that the response of demonstration ``own`` does not answer."""
        if (others := self.task.other_prompts(own)) is not None:
            return others[drawn % len(others)]
        demonstrations = self.task.demonstrations
        prompts = (demonstrations[row].prompt_ids for row in np.roll(self.trained_rows, -drawn))
        return next(ids for ids in prompts if ids.tobytes() != demonstrations[own].prompt_ids.tobytes())

    def text_beside(self, rollouts: Sequence[Rollout]) -> TextBlocks | None:
        """Real text for the generator update on these rollouts (``AlgorithmSettings.text``); None if unused."""
        match self.config.generator.active.text:
            case "answers":
                return demonstration_blocks(self._answers(rollouts))
            case "pairs":
                answers = self._answers(rollouts)
                drawn = self._next("pretraining", len(answers)).tolist()
                return demonstration_blocks([*answers, *map(self._negative, answers, drawn)])
        return None if self.text is None else self.text[self._next("pretraining", self.config.rollout.batch_size)]

    def _answers(self, rollouts: Sequence[Rollout]) -> list[Demonstration]:
        return [self.task.demonstrations[rollout.prompt_id] for rollout in rollouts]

    def _negative(self, answer: Demonstration, drawn: int) -> Demonstration:
        """Choose a labelled negative of the same prompt, or the drawn one with its own prompt."""
        same = self.negatives_of.get(answer.prompt_ids.tobytes())
        return same[drawn % len(same)] if same else self.negatives[drawn]

    def _next(self, stream: str, count: int) -> np.ndarray:
        return self.streams[stream].next(count)

    def state_dict(self) -> dict[str, Any]:
        streams = {name: stream.state_dict() for name, stream in self.streams.items()}
        return {"prompts": self.prompt_stream.state_dict()} | streams

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.prompt_stream.load_state_dict(state["prompts"])
        for name, stream in self.streams.items():
            stream.load_state_dict(state[name])
