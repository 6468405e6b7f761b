"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv 1806.03822): questions, splits, windows."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_DATASETS = {"1.1": "rajpurkar/squad", "2.0": "rajpurkar/squad_v2"}


@dataclass(frozen=True, slots=True)
class Question:
    """One question; without answers it is one that the context does not answer (SQuAD 2.0)."""

    title: str  # of the article that the context is from
    context: str
    question: str
    answers: list[str] = field(default_factory=list)  # several people's; may repeat
    answer_start: int | None = None  # where the first answer begins in the context, in characters


def load_squad(path: str | Path) -> list[Question]:
    """Read an official SQuAD file, ``.json`` or ``.json.gz``. Raises ``ValueError`` with the fix in its text."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"task.path={path} does not exist: give an official SQuAD file such as train-v1.1.json")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            articles = json.load(file)["data"]
        questions = [
            _question(article, paragraph, row)
            for article in articles
            for paragraph in article["paragraphs"]
            for row in paragraph["qas"]
        ]
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"task.path={path} is no JSON in UTF-8 ({error}): give an official SQuAD file") from error
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"task.path={path} is not in SQuAD's form (data, paragraphs, context, qas, question, answers; {error} is "
            "missing or of another type): give an official SQuAD file"
        ) from error
    if not questions:
        raise ValueError(f"task.path={path} holds no question: give an official SQuAD file such as train-v1.1.json")
    return questions


def _question(article: dict[str, Any], paragraph: dict[str, Any], row: dict[str, Any]) -> Question:
    answers = [] if row.get("is_impossible") else row["answers"]
    return Question(
        title=article["title"],
        context=paragraph["context"],
        question=" ".join(row["question"].split()),
        answers=[answer["text"] for answer in answers],
        answer_start=answers[0]["answer_start"] if answers else None,
    )


def split_by_article(
    questions: Sequence[Question], shares: dict[str, float], *, seed: int
) -> dict[str, list[Question]]:
    """Parts that share no article, so that no context of one part is known from another.

    Whole articles are drawn with ``seed`` and dealt out until each part has its share of the questions, in the order of
    ``shares`` (which sum to 1). Raises ``ValueError`` where the articles are too few for a part.
    """
    assert abs(sum(shares.values()) - 1.0) < 1e-9, shares
    by_title: dict[str, list[Question]] = {}
    for question in questions:
        by_title.setdefault(question.title, []).append(question)
    titles = list(by_title)
    order = iter(np.random.default_rng(seed).permutation(len(titles)))
    bounds = np.cumsum(list(shares.values())) * len(questions)
    parts: dict[str, list[Question]] = {}
    count = 0
    for name, bound in zip(shares, bounds, strict=True):
        parts[name] = []
        while count + 1e-6 < bound and (row := next(order, None)) is not None:
            parts[name] += by_title[titles[row]]
            count += len(by_title[titles[row]])
        if not parts[name]:
            raise ValueError(
                f"{len(titles)} articles are too few for the parts {', '.join(shares)}: none is left for {name}; "
                "give a file with more articles"
            )
    return parts


def context_window(question: Question, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> str:
    """At most ``max_tokens`` tokens of the context, with the first answer near their middle where that is possible.

    A question without an answer gets the context's beginning. Where the answer alone is longer than the window, the
    window starts with it.
    """
    offsets = tokenizer(question.context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) <= max_tokens:
        return question.context
    first = 0
    if question.answer_start is not None:
        begin, end = question.answer_start, question.answer_start + len(question.answers[0])
        held = [row for row, (left, right) in enumerate(offsets) if right > begin and left < end]
        spare = max(0, max_tokens - len(held))
        first = min(max(0, held[0] - spare // 2), len(offsets) - max_tokens)
    left, right = offsets[first][0], offsets[first + max_tokens - 1][1]
    return question.context[left:right].strip()


def prompt_text(question: Question, context: str | None) -> str:
    """What the generator continues: with the context, or the bare question as in the paper's table 1."""
    asked = f"Question: {question.question}\nAnswer:"
    return asked if context is None else f"Context: {context}\n{asked}"
