"""The table of evaluation measures that a task can select by name."""

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
class MeasureInputs:
    """Arguments of a measure's factory; it evaluates the first prompts of a split."""

    task: Task
    part: EvaluationPart
    real_texts: Sequence[str]  # real responses to these prompts, as read by the task's ``evaluated_ids``
    encode: Encode | None  # sentence embeddings, if installed
    cache: Path  # folder for fitted judges


@runtime_checkable
class JudgedTask(Protocol):
    """Methods that a task needs for the measure ``sentiment``."""

    def judge_texts(self, part: EvaluationPart) -> tuple[list[str], np.ndarray]:
        """Return the training texts of the judge of ``part`` and their labels (int64, 1 = positive)."""
        ...

    def asked_positive(self, part: EvaluationPart) -> np.ndarray:
        """Return whether each prompt requests a positive text: int64, 1 = positive, in the order of ``evaluation``."""
        ...


@runtime_checkable
class ReferencedTask(Protocol):
    """Attributes that a task needs for the measure ``answers``."""

    no_answer: str | None
    """The response that states that there is no answer."""

    def evaluation_pairs(self, part: EvaluationPart) -> list[Pair]:
        """Return the split as text, with contexts and references."""
        ...


def _sentiment(inputs: MeasureInputs) -> Measure:
    task = inputs.task
    if not isinstance(task, JudgedTask):
        raise _lacks(task, "sentiment", "judge_texts and asked_positive")
    texts, labels = task.judge_texts(inputs.part)
    judge = prepare_judge(texts, labels, inputs.cache)
    second = None if inputs.encode is None else prepare_embedding_judge(inputs.encode, texts, labels, inputs.cache)
    return SentimentMeasure(
        judge, inputs.real_texts, task.asked_positive(inputs.part)[: len(inputs.real_texts)], second
    )


def _answers(inputs: MeasureInputs) -> Measure:
    if not isinstance(inputs.task, ReferencedTask):
        raise _lacks(inputs.task, "answers", "evaluation_pairs and no_answer")
    pairs = inputs.task.evaluation_pairs(inputs.part)[: len(inputs.real_texts)]
    references, contexts = [pair.references for pair in pairs], [pair.context for pair in pairs]
    return AnswerMeasure(references, contexts, no_answer=inputs.task.no_answer)


def _responses(inputs: MeasureInputs) -> Measure:
    return AnswerMeasure([(text.strip(),) for text in inputs.real_texts], [""] * len(inputs.real_texts))


MEASURES: Mapping[str, Callable[[MeasureInputs], Measure]] = {
    "sentiment": _sentiment,
    "answers": _answers,
    "responses": _responses,
}
"""``sentiment``: a panel of judges; ``answers``: F1 against references; ``responses``: F1 against the real response."""


def build_measure(inputs: MeasureInputs) -> Measure:
    """Build the task's custom measure or the one it names. Raises ``UserError`` for an unknown name."""
    measure = inputs.task.measure
    if not isinstance(measure, str):
        return measure(inputs.part, len(inputs.real_texts))
    if measure not in MEASURES:
        raise UserError(f"{_name(inputs.task)}.measure={measure!r} is unknown: choose one of {', '.join(MEASURES)}")
    return MEASURES[measure](inputs)


def _lacks(task: Task, measure: str, methods: str) -> UserError:
    return UserError(f"{_name(task)}.measure={measure!r} needs the task's {methods}: add them or choose another")


def _name(task: Task) -> str:
    return type(task).__name__
