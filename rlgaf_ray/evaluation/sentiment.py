"""The sentiment of generated reviews: what a judge and a lexicon say of it, and how far the gap to real text closed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlgaf_ray.evaluation.judge import SentimentJudge
from rlgaf_ray.evaluation.text import vader_labels
from rlgaf_ray.types import Metrics


def gap_closed(share: float, sft_share: float, real_share: float) -> float:
    """How far the share moved from the SFT model's to that of real text: 0 at the start, 1 at the ceiling.

    (share - sft_share) / (real_share - sft_share); 0 where there is no gap. A judge that errs at random shrinks
    numerator and denominator alike.
    """
    gap = real_share - sft_share
    return (share - sft_share) / gap if gap else 0.0


class SentimentMeasure:
    """Shares of texts of the sentiment that was asked for. Where both are, that is the control accuracy, and the share
    of each is told apart: one of them alone can be had without any control.

    ``wanted``: int64 [N], 1 = positive was asked for, in the texts' order; ``real_texts``: the real answers.
    """

    baseline: tuple[str, ...] = ("eval/judge_share",)

    def __init__(self, judge: SentimentJudge, real_texts: Sequence[str], wanted: np.ndarray) -> None:
        assert len(real_texts) == len(wanted)
        self._judge = judge
        self._wanted = wanted
        self._real = {f"{name}_real": share for name, share in self._shares(real_texts).items()}

    def __call__(self, texts: Sequence[str]) -> Metrics:
        shares = self._shares(texts)
        share = shares["eval/judge_share"]
        metrics = {
            **shares,
            **self._real,
            "eval/judge_share_stderr": math.sqrt(share * (1 - share) / len(texts)),
            "eval/judge_accuracy": self._judge.accuracy,
            "eval/judge_accuracy_window": self._judge.accuracy_window,
        }
        if 0 < self._wanted.mean() < 1:
            as_asked = self._judged(texts)
            metrics["eval/judge_share_asked_positive"] = float(as_asked[self._wanted == 1].mean())
            metrics["eval/judge_share_asked_negative"] = float(as_asked[self._wanted == 0].mean())
        return metrics

    def compared(self, metrics: Metrics, sft: Metrics) -> Metrics:
        share, real = metrics["eval/judge_share"], self._real["eval/judge_share_real"]
        return {
            "eval/judge_share_sft": sft["eval/judge_share"],
            "eval/gap_closed": gap_closed(share, sft["eval/judge_share"], real),
        }

    def _shares(self, texts: Sequence[str]) -> Metrics:
        return {
            "eval/judge_share": float(self._judged(texts).mean()),
            "eval/vader_share": float((vader_labels(texts) == np.where(self._wanted == 1, 1, -1)).mean()),
        }

    def _judged(self, texts: Sequence[str]) -> np.ndarray:
        return (self._judge.scores(texts) > 0) == (self._wanted == 1)
