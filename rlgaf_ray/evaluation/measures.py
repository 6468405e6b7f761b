"""The one table of measures that a task can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from rlgaf_ray.data.pair import Pair
from rlgaf_ray.data.task import Measure, Task
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.answers import AnswerMeasure
from rlgaf_ray.evaluation.embedding_judge import prepare_embedding_judge
from rlgaf_ray.evaluation.embeddings import Encode
from rlgaf_ray.evaluation.judge import prepare_judge
from rlgaf_ray.evaluation.sentiment import SentimentMeasure
from rlgaf_ray.types import EvaluationPart


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What a measure is built for: the first prompts of a part."""

    task: Task
    part: EvaluationPart
    real_texts: Sequence[str]  # the real answers to these prompts, as the task's ``evaluated_ids`` reads them
    encode: Encode | None  # sentence embeddings, where there are any
    cache: Path  # folder of what takes long to make


@runtime_checkable
class JudgedTask(Protocol):
    """What ``sentiment`` asks of a task."""

    def judge_texts(self, part: EvaluationPart) -> tuple[list[str], np.ndarray]:
        """Texts that train the judge of ``part``, and their labels (int64, 1 = positive)."""
        ...

    def asked_positive(self, part: EvaluationPart) -> np.ndarray:
        """int64, 1 = a positive text was asked for; in the order of ``evaluation``."""
        ...


@runtime_checkable
class ReferencedTask(Protocol):
    """What ``answers`` asks of a task."""

    no_answer: str | None
    """The response that says that there is no answer."""

    def evaluation_pairs(self, part: EvaluationPart) -> list[Pair]:
        """The part as text, with contexts and references."""
        ...


def _sentiment(on: Evaluated) -> Measure:
    task = on.task
    if not isinstance(task, JudgedTask):
        raise _lacks(task, "sentiment", "judge_texts and asked_positive")
    texts, labels = task.judge_texts(on.part)
    judge = prepare_judge(texts, labels, on.cache)
    second = None if on.encode is None else prepare_embedding_judge(on.encode, texts, labels, on.cache)
    return SentimentMeasure(judge, on.real_texts, task.asked_positive(on.part)[: len(on.real_texts)], second)


def _answers(on: Evaluated) -> Measure:
    if not isinstance(on.task, ReferencedTask):
        raise _lacks(on.task, "answers", "evaluation_pairs and no_answer")
    pairs = on.task.evaluation_pairs(on.part)[: len(on.real_texts)]
    references, contexts = [pair.references for pair in pairs], [pair.context for pair in pairs]
    return AnswerMeasure(references, contexts, no_answer=on.task.no_answer)


def _responses(on: Evaluated) -> Measure:
    return AnswerMeasure([(text.strip(),) for text in on.real_texts], [""] * len(on.real_texts))


MEASURES: Mapping[str, Callable[[Evaluated], Measure]] = {
    "sentiment": _sentiment,
    "answers": _answers,
    "responses": _responses,
}
"""``sentiment``: a panel of judges; ``answers``: F1 against references; ``responses``: F1 against the real response."""


def build_measure(on: Evaluated) -> Measure:
    """The task's own measure, or the one that it names. Raises ``UserError`` for an unknown name."""
    measure = on.task.measure
    if not isinstance(measure, str):
        return measure(on.part, len(on.real_texts))
    if measure not in MEASURES:
        raise UserError(f"{_name(on.task)}.measure={measure!r} is unknown: name one of {', '.join(MEASURES)}")
    return MEASURES[measure](on)


def _lacks(task: Task, measure: str, methods: str) -> UserError:
    return UserError(f"{_name(task)}.measure={measure!r} needs {methods} of the task: add them, or name another")


def _name(task: Task) -> str:
    return type(task).__name__
