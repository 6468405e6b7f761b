"""Question answering metrics: exact match and F1 as in SQuAD's official scripts, and answer lengths.

Rajpurkar et al. 2016 (arXiv 1606.05250), section 6.1, and 2018 (arXiv 1806.03822): answers are compared as bags of
words, lower-cased, without punctuation and articles. The best of several references counts. "No answer" is the empty
string and correct only for unanswerable questions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.stats import wasserstein_distance

from rlgaf_ray.data.task import Measure
from rlgaf_ray.types import Metrics

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower-case the text, remove punctuation and articles, collapse whitespace."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the normalised answer equals a reference, or is empty if there are no references; else 0."""
    return max(float(normalize_answer(answer) == normalize_answer(reference)) for reference in references or [""])


def f1(answer: str, references: Sequence[str]) -> float:
    """Compute the word-level F1 against the best reference, 0 to 1, counting repeated words.

    2 * common / (words of the answer + words of the reference). If either is empty after normalisation: 1 if both are,
    else 0.
    """
    return max(_f1(normalize_answer(answer).split(), normalize_answer(text).split()) for text in references or [""])


def answer_metrics(answers: Sequence[str], references: Sequence[Sequence[str]], contexts: Sequence[str]) -> Metrics:
    """Compute all metrics of one answer per question; an empty list of references marks an unanswerable question.

    - ``eval/exact_match`` and ``eval/f1``, in percent like the official scripts; also over answerable
      (``_has_answer``) and unanswerable (``_no_answer``) questions, if there are any
    - ``eval/answer_words``, the mean length
    - ``eval/length_distance``, the Wasserstein distance in words between the lengths of answers and first references
    - ``eval/in_context_share``, the share of non-empty answers found in their context, if there are contexts
    """
    assert len(answers) == len(references) == len(contexts) > 0
    scores = {
        "exact_match": np.array([exact_match(*pair) for pair in zip(answers, references, strict=True)]),
        "f1": np.array([f1(*pair) for pair in zip(answers, references, strict=True)]),
    }
    has_answer = np.array([bool(texts) for texts in references])
    metrics: Metrics = {}
    for name, values in scores.items():
        metrics[f"eval/{name}"] = 100 * float(values.mean())
        for part, chosen in (("has_answer", has_answer), ("no_answer", ~has_answer)):
            if chosen.any():
                metrics[f"eval/{name}_{part}"] = 100 * float(values[chosen].mean())
    lengths = [len(answer.split()) for answer in answers]
    real_lengths = [len(texts[0].split()) if texts else 0 for texts in references]
    metrics["eval/answer_words"] = float(np.mean(lengths))
    metrics["eval/length_distance"] = float(wasserstein_distance(lengths, real_lengths))
    if any(contexts):
        found = [_occurs(answer, context) for answer, context in zip(answers, contexts, strict=True)]
        metrics["eval/in_context_share"] = float(np.mean(found))
    return metrics


class AnswerMeasure(Measure):
    """Compares answers with the references of their prompts; ``no_answer`` is the response for "no answer"."""

    baseline: tuple[str, ...] = ("eval/length_distance",)

    def __init__(
        self, references: Sequence[Sequence[str]], contexts: Sequence[str], *, no_answer: str | None = None
    ) -> None:
        self._references = references
        self._contexts = contexts
        self._no_answer = no_answer

    def __call__(self, texts: Sequence[str]) -> Metrics:
        return answer_metrics(self._read(texts), self._references, self._contexts)

    def each(self, texts: Sequence[str]) -> np.ndarray:
        """Return each answer's F1, in percent."""
        return 100 * np.array([f1(*pair) for pair in zip(self._read(texts), self._references, strict=False)])

    def quick(self, texts: Sequence[str]) -> Metrics:
        """Compute the mean F1 of the first answers."""
        return {"f1": float(self.each(texts).mean())}

    def compared(self, metrics: Metrics, sft: Metrics) -> Metrics:
        """Compute the length distance relative to the SFT model's."""
        start = sft["eval/length_distance"]
        return {"eval/length_distance_ratio": metrics["eval/length_distance"] / start if start else 1.0}

    def _read(self, texts: Sequence[str]) -> list[str]:
        return ["" if text.strip() == self._no_answer else text.strip() for text in texts]


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))


def _occurs(answer: str, context: str) -> bool:
    words = normalize_answer(answer)
    return bool(words) and f" {words} " in f" {normalize_answer(context)} "
