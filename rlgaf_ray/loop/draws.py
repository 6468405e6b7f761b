"""What the iterations take from the data: prompts, demonstrations, contrast, real text, each in an order of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlgaf_ray.config.discriminator import BatchNeeds
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.collate import demonstration_blocks
from rlgaf_ray.data.prompts import PromptStream
from rlgaf_ray.data.task import Task
from rlgaf_ray.loop.held_out import contrast_without, set_apart
from rlgaf_ray.types import Demonstration, Prompt, Rollout, TextBlocks


class Draws:
    """Rows that are held out of training are never drawn. All streams are seeded by ``run.seed``, and resumable."""

    def __init__(self, config: Config, task: Task, needs: BatchNeeds) -> None:
        """``needs``: of the discriminator's updates."""
        self.config = config
        self.task = task
        self.needs = needs
        self.trained_rows, self.held_out_rows = set_apart(len(task.demonstrations), config.held_out_demonstrations)
        self.contrast_rows = contrast_without(self.held_out_rows, task.demonstrations, task.contrast)
        self.text: TextBlocks | None = None
        self.answers = config.generator.active.text == "answers"
        match config.generator.active.text:
            case "pretraining":
                self.text = task.warmup_blocks(config.task.prompt_tokens + config.task.response_tokens)
            case "demonstrations":
                self.text = demonstration_blocks([task.demonstrations[row] for row in self.trained_rows])
        sizes = {
            "prompts": len(self.trained_rows),
            "real": len(self.trained_rows),
            "contrast": max(1, len(self.contrast_rows)),
            "pretraining": 1 if self.text is None else len(self.text),
            "others": len(self.trained_rows),
        }
        self.streams = {
            name: PromptStream(
                num_items, seed=int(np.random.SeedSequence([config.run.seed, index]).generate_state(1)[0])
            )
            for index, (name, num_items) in enumerate(sizes.items())
        }

    def prompts(self) -> list[Prompt]:
        """Of the next batch of rollouts."""
        rows = self.trained_rows[self._next("prompts", self.config.rollout.prompts_per_iteration)].tolist()
        return [Prompt(prompt_id=row, token_ids=self.task.demonstrations[row].prompt_ids) for row in rows]

    def real(self, rollouts: Sequence[Rollout]) -> list[Demonstration]:
        """Demonstrations for one discriminator update beside these rollouts."""
        demonstrations = self.task.demonstrations
        if self.needs.pairs:
            return [demonstrations[rollout.prompt_id] for rollout in rollouts]
        return [
            demonstrations[row] for row in self.trained_rows[self._next("real", self.config.discriminator.batch_size)]
        ]

    def contrast(self, rollouts: Sequence[Rollout]) -> list[Demonstration]:
        """Demonstrations of the unwanted kind for the same update; none where they are switched off."""
        if self.needs.other_prompts:
            return self._under_other_prompts(rollouts, self.needs.other_prompts)
        if not self.needs.contrast or not self.contrast_rows:
            return []
        count = len(rollouts) if self.needs.pairs else self.config.discriminator.batch_size
        return [self.contrast_rows[row] for row in self._next("contrast", count)]

    def _under_other_prompts(self, rollouts: Sequence[Rollout], num_prompts: int) -> list[Demonstration]:
        """The demonstrations of the rollouts' prompts under other prompts: a block of all of them for each prompt."""
        demonstrations = self.task.demonstrations
        own = [demonstrations[rollout.prompt_id] for rollout in rollouts]
        moved = []
        for _ in range(num_prompts):
            for item, row in zip(own, self._next("others", len(own)), strict=True):
                following = (demonstrations[each] for each in np.roll(self.trained_rows, -row))
                prompts = (other.prompt_ids for other in following)
                other = next(ids for ids in prompts if ids.tobytes() != item.prompt_ids.tobytes())
                moved.append(Demonstration(other, item.response_ids))
        return moved

    def text_beside(self, rollouts: Sequence[Rollout]) -> TextBlocks | None:
        """What the algorithm reads beside these rollouts (``AlgorithmSettings.text``)."""
        if self.answers:
            return demonstration_blocks([self.task.demonstrations[rollout.prompt_id] for rollout in rollouts])
        return None if self.text is None else self.text[self._next("pretraining", self.config.rollout.batch_size)]

    def _next(self, stream: str, count: int) -> np.ndarray:
        return self.streams[stream].next(count)

    def state_dict(self) -> dict[str, Any]:
        return {name: stream.state_dict() for name, stream in self.streams.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, stream in self.streams.items():
            stream.load_state_dict(state[name])
