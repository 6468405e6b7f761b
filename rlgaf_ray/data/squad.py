"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv 1806.03822) as prompt-response pairs."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rlgaf_ray.config.task import SquadSettings, TaskSection
from rlgaf_ray.data.columns import check_encodable
from rlgaf_ray.data.pair import Pair
from rlgaf_ray.data.pairs import PairSource
from rlgaf_ray.data.rows import hub_rows
from rlgaf_ray.errors import UserError

T = TypeVar("T", str, int)
COLUMNS = ("title", "context", "question", "answers")
HUB_DATASETS = {"1.1": "rajpurkar/squad", "2.0": "rajpurkar/squad_v2"}


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its context. An empty ``answers`` marks an unanswerable question (SQuAD 2.0)."""

    title: str  # of the context's article
    context: str
    question: str
    answers: list[str] = field(default_factory=list)  # by several annotators; may repeat
    answer_start: int | None = None  # character offset of the first answer in the context


def load_squad(path: str | Path) -> list[Question]:
    """Read an official SQuAD file, ``.json`` or ``.json.gz``. Raises ``UserError`` with the fix if it cannot."""
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise UserError(f"task.squad.path={path} does not exist: give an official SQuAD file such as train-v1.1.json")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, EOFError, zlib.error, RecursionError, ValueError) as error:
        raise UserError(
            f"task.squad.path={path} is not valid UTF-8 JSON ({error}): give an official SQuAD file"
        ) from error
    try:
        questions = [
            _question(article, paragraph, row)
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for row in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"task.squad.path={path} is not in SQuAD's format (data, paragraphs, context, qas, question, answers; "
            f"{error} is missing or of another type): give an official SQuAD file"
        ) from error
    for question in questions:
        check_encodable([question.title, question.context, question.question, *question.answers], str(path))
    if not questions:
        raise UserError(f"task.squad.path={path} has no questions: give an official SQuAD file such as train-v1.1.json")
    return questions


def _question(article: dict[str, Any], paragraph: dict[str, Any], row: dict[str, Any]) -> Question:
    answers = [] if row.get("is_impossible") else row["answers"]
    return Question(
        title=_typed(article, "title", str),
        context=_typed(paragraph, "context", str),
        question=" ".join(_typed(row, "question", str).split()),
        answers=[_typed(answer, "text", str) for answer in answers],
        answer_start=_typed(answers[0], "answer_start", int) if answers else None,
    )


def _typed(row: dict[str, Any], name: str, kind: type[T]) -> T:
    if not isinstance(row[name], kind):
        raise TypeError(name)
    return row[name]


def squad_pairs(questions: Iterable[Question], settings: SquadSettings, *, keep_rows: bool = False) -> list[Pair]:
    """Build pairs: context and question, or only the question (RLGAF, table 1), with the first answer as the response.

    ``keep_rows``: keep ``title``, ``context``, ``question`` and ``answers`` for reward functions.
    """
    pairs = []
    for question in questions:
        if not question.answers and settings.unanswerable == "drop":
            continue
        kept_span = None
        if question.answer_start is not None:
            start = question.answer_start + 1  # for the space before the context
            kept_span = (start, start + len(question.answers[0]))
        asked = f"Question: {question.question}\nAnswer:"
        pairs.append(
            Pair(
                before="Context:" if settings.context else "",
                context=f" {question.context}" if settings.context else "",
                after=f"\n{asked}" if settings.context else asked,
                response=f" {question.answers[0] if question.answers else settings.no_answer}",
                group=question.title,
                references=tuple(question.answers),
                kept_span=kept_span if settings.context else None,
                row={name: getattr(question, name) for name in COLUMNS} if keep_rows else {},
            )
        )
    return pairs


def squad_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> PairSource:
    """Read the questions of ``task.squad`` and split them by article; ``base`` as in ``PairSource.split``.

    Raises ``UserError`` with the fix if the data cannot be read or are too few.
    """
    settings = task.squad
    questions = load_squad(settings.path) if settings.path else _read_hub(settings.version)
    pairs = squad_pairs(questions, settings, keep_rows=keep_rows)
    left_out = {"questions left out by task.squad.unanswerable=drop": len(questions) - len(pairs)}
    return PairSource.split(task, settings, pairs, base=base, no_answer=settings.no_answer, remarks=left_out)


def _read_hub(version: str) -> list[Question]:
    return [
        Question(
            title=row["title"],
            context=row["context"],
            question=" ".join(row["question"].split()),
            answers=list(row["answers"]["text"]),
            answer_start=row["answers"]["answer_start"][0] if row["answers"]["text"] else None,
        )
        for _, row in hub_rows(HUB_DATASETS[version], key="task.squad")
    ]
