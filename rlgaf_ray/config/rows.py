"""Settings of tasks whose data are rows: prompts and responses, or chats."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, field_validator

from rlgaf_ray.config.section import Positive, Rate, Section

CHAT_ARGUMENTS = (
    frozenset(  # arguments of apply_chat_template that the run sets, or that would change the result's type
        (
            *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
            *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
            *("return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now"),
        )
    )
)


class TaskSettings(Section):
    """Base of the task-specific sections."""

    path_keys: ClassVar[tuple[str, ...]] = ()
    """Keys whose values are paths, globs or URIs of files."""

    source_keys: ClassVar[tuple[str, ...]] = ()
    """Keys whose values are ids on the hub, or local folders."""

    @property
    def variant(self) -> str:
        """Suffix of the task's name in the default run name."""
        return ""

    def check(self) -> None:
        """Raise ``ValueError`` if required settings are missing; called for the configured task only."""


class PairShares(Section):
    """Relative sizes of the disjoint parts of a task's rows; they need not sum to 1."""

    base: Rate = Field(0.45, description="rows for the base warm-up; without one they become demonstrations")
    demonstrations: Rate = 0.35
    validation: Rate = 0.1
    test: Rate = 0.1


class PairSettings(TaskSettings):
    """Settings shared by tasks of prompts and responses."""

    shares: PairShares = PairShares()
    max_rows: Positive | None = Field(None, description="use at most this many rows, chosen at random; null: all")
    warmup_loss: Literal["response", "all"] = Field(
        "response", description="loss of the base warm-up; all: on prompts too, as a model from scratch needs"
    )


class RowSettings(PairSettings):
    """Settings of demonstrations as rows: a prompt and a response, or the messages of a chat."""

    prompt_column: str | None = Field(None, description="column with text or messages; null: prompt, or question")
    response_column: str | None = Field(
        None, description="column with text or messages; null: response, completion, chosen or answer"
    )
    rejected_column: str | None = Field(
        None, description="column with a rejected response, a labelled negative; null: rejected"
    )
    messages_column: str | None = Field(
        None, description="column with [{role, content}, ...] ending in the response; null: messages or conversations"
    )
    messages_train: Literal["last", "all"] = Field(
        "last", description="all: every assistant turn is a demonstration, given the turns before it"
    )
    system_prompt: str | None = Field(None, description="system message of chats without one; null: none")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="extra arguments of the chat template, e.g. {enable_thinking: false}"
    )
    tools: list[dict[str, Any]] | None = Field(
        None, description="tools for the chat template, as JSON schemas; overridden by the row's tools_column"
    )
    tools_column: str = Field(
        "tools", description="column with a row's tools: a list of JSON schemas, or its JSON as text"
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _leaves_the_chat_alone(cls, values: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(CHAT_ARGUMENTS & values.keys()):
            raise ValueError(f"{', '.join(taken)} is set by the run: remove it")
        return values

    @property
    def for_chats(self) -> str:
        """Names of the given settings that only a chat template reads."""
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
"""One or more paths, globs or URIs."""


class JsonlSettings(RowSettings):
    """Demonstrations from files: JSON Lines, JSON, CSV or Parquet."""

    path_keys = ("path", "prompts", "base", "validation_path", "test_path")

    path: Paths = Field(
        None,
        description="JSON Lines, JSON, CSV or Parquet files, optionally .gz: paths, globs or URIs (s3://, gs://, hf://)",
    )
    prompts: Paths = Field(
        None, description="files of prompts without answers, for rollouts only; rollout.free_prompts is their share"
    )
    base: Paths = Field(
        None,
        description="files for the base warm-up: pairs, chats or texts (a column text); null: its share of path",
    )
    validation_path: Paths = Field(None, description="files of the validation split; null: its share of path")
    test_path: Paths = Field(None, description="files of the test split; null: its share of path")

    def check(self) -> None:
        if not self.path:
            raise ValueError("task.name=jsonl needs task.jsonl.path=FILE (JSON Lines, JSON, CSV or Parquet)")


class HubSettings(RowSettings):
    """Demonstrations from a data set of the Hugging Face hub."""

    source_keys = ("dataset", "prompts", "base")

    dataset: str | None = Field(None, description="data set id on the Hugging Face hub")
    subset: str | None = None
    split: str = "train"
    prompts: str | None = Field(
        None,
        description="id of a data set of prompts without answers, for rollouts only; rollout.free_prompts is their "
        "share",
    )
    prompts_split: str = "train"
    base: str | None = Field(
        None,
        description="id of a data set for the base warm-up: pairs, chats or texts (a column text); null: its share of "
        "split",
    )
    base_split: str = "train"
    validation_split: str | None = Field(None, description="split used for validation; null: its share of split")
    test_split: str | None = Field(None, description="split used for tests; null: its share of split")

    def check(self) -> None:
        if not self.dataset:
            raise ValueError("task.name=hub needs task.hub.dataset=ID (a data set of the Hugging Face hub)")
