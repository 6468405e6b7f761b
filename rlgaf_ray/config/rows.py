"""Settings of tasks whose data are rows of prompts and responses, or of chats."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, field_validator

from rlgaf_ray.config.section import Positive, Rate, Section

CHAT_ARGUMENTS = (
    frozenset(  # of apply_chat_template: what the run sets by itself, or what would change the result's type
        (
            *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
            *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
            *("return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now"),
        )
    )
)


class TaskSettings(Section):
    """Base of the sections that belong to one task."""

    @property
    def variant(self) -> str:
        """What a run's name says beside the task's."""
        return ""

    def check(self) -> None:
        """Called for the task that is chosen; ``ValueError`` where its settings lack something."""


class PairShares(Section):
    """Disjoint parts of a task's rows; they need not sum to 1."""

    base: Rate = Field(0.45, description="for the base warm-up; without one it goes to the demonstrations")
    demonstrations: Rate = 0.35
    validation: Rate = 0.1
    test: Rate = 0.1


class PairSettings(TaskSettings):
    """What tasks of prompts and whole responses share."""

    shares: PairShares = PairShares()
    max_rows: Positive | None = Field(None, description="read no more than this many (drawn by lot); default: all")
    warmup_loss: Literal["response", "all"] = Field(
        "response", description="all: the generator's warm-up learns the prompts' text too, as a new model must"
    )


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
    dataset: str | None = Field(None, description="id of a data set on the hub")
    subset: str | None = None
    split: str = "train"
    validation_split: str | None = Field(None, description="the part validation, in place of its share of split")
    test_split: str | None = Field(None, description="the part test, in place of its share of split")

    def check(self) -> None:
        if not self.dataset:
            raise ValueError("task.name=hub needs task.hub.dataset=ID (a data set of the Hugging Face hub)")
