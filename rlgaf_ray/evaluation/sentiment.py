"""Sentiment of generated reviews by a panel of judges, each compared with its verdict on real text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlgaf_ray.data.task import Measure
from rlgaf_ray.evaluation.embedding_judge import EmbeddingJudge
from rlgaf_ray.evaluation.judge import SentimentJudge
from rlgaf_ray.evaluation.text import vader_labels
from rlgaf_ray.types import Metrics


def closeness(two_sample_auc: float, panel_gap: float) -> float:
    """Compute the closeness to real text: 0 for real text, lower is worse, at least -1.5.

    ``-(two_sample_auc - 0.5) - panel_gap``, with ``panel_gap`` = mean over judges of |share - real text's share|.
    Overshooting the share of real text costs as much as falling short of it.
    """
    return -(two_sample_auc - 0.5) - panel_gap


def gap_closed(share: float, sft_share: float, real_share: float) -> float:
    """Return the fraction of the gap between SFT model (0) and real text (1) that is closed.

    (share - sft_share) / (real_share - sft_share); 0 if there is no gap. Random errors of the judge shrink numerator
    and denominator by the same factor.
    """
    gap = real_share - sft_share
    return (share - sft_share) / gap if gap else 0.0


class SentimentMeasure(Measure):
    """Measures the share of texts with the requested sentiment, by each judge of the panel.

    The panel is the linear judge (``eval/judge_share``), VADER and, if available, the embedding judge. If prompts
    request both sentiments, a share is the control accuracy. The linear judge's share is then also reported per
    sentiment, since a generator that ignores the prompt can reach a high share for one of them.

    ``wanted``: int64 [N], 1 = positive requested, in the order of the texts; ``real_texts``: the real responses.
    """

    baseline: tuple[str, ...] = ("eval/judge_share",)

    def __init__(
        self,
        judge: SentimentJudge,
        real_texts: Sequence[str],
        wanted: np.ndarray,
        embedding_judge: EmbeddingJudge | None = None,
    ) -> None:
        assert len(real_texts) == len(wanted)
        self._judge = judge
        self._embedding_judge = embedding_judge
        self._wanted = wanted
        self._real_verdicts = self.verdicts(real_texts)
        self._real = {
            name.replace("_share", "_share_real"): value for name, value in _shares(self._real_verdicts).items()
        }

    def __call__(self, texts: Sequence[str]) -> Metrics:
        verdicts = self.verdicts(texts)
        shares = _shares(verdicts)
        gaps = [abs(shares[f"eval/{name}_share"] - self._real[f"eval/{name}_share_real"]) for name in verdicts]
        metrics = {
            **shares,
            **self._real,
            "eval/panel_gap": float(np.mean(gaps)),
            "eval/judge_accuracy": self._judge.accuracy,
            "eval/judge_accuracy_window": self._judge.accuracy_window,
        }
        if self._embedding_judge is not None:
            metrics["eval/embedding_accuracy_window"] = self._embedding_judge.accuracy_window
        if 0 < self._wanted.mean() < 1:
            as_wanted = verdicts["judge"]
            metrics["eval/judge_share_asked_positive"] = float(as_wanted[self._wanted == 1].mean())
            metrics["eval/judge_share_asked_negative"] = float(as_wanted[self._wanted == 0].mean())
        return metrics

    def each(self, texts: Sequence[str]) -> None:
        """Return None: closeness is not defined for single texts."""

    def quick(self, texts: Sequence[str]) -> Metrics:
        """Compute the linear judge's share on the first texts."""
        real = self._real_verdicts["judge"][: len(texts)]
        return {
            "judge_share": float(self._judged(self._judge, texts).mean()),
            "judge_share_real": float(real.mean()),
        }

    def derived(self, metrics: Metrics) -> Metrics:
        """Compute closeness."""
        return {"eval/closeness": closeness(metrics["eval/two_sample_auc"], metrics["eval/panel_gap"])}

    def compared(self, metrics: Metrics, sft: Metrics) -> Metrics:
        """Compute the gap closed relative to the SFT model."""
        share, real = metrics["eval/judge_share"], self._real["eval/judge_share_real"]
        return {
            "eval/judge_share_sft": sft["eval/judge_share"],
            "eval/gap_closed": gap_closed(share, sft["eval/judge_share"], real),
        }

    def verdicts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return whether each judge detects the wanted sentiment: bool [N] by judge."""
        verdicts = {
            "judge": self._judged(self._judge, texts),
            "vader": vader_labels(texts) == np.where(self._wanted == 1, 1, -1),
        }
        if self._embedding_judge is not None:
            verdicts["embedding"] = self._judged(self._embedding_judge, texts)
        return verdicts

    def _judged(self, judge: SentimentJudge | EmbeddingJudge, texts: Sequence[str]) -> np.ndarray:
        return (judge.scores(texts) > 0) == (self._wanted[: len(texts)] == 1)


def _shares(verdicts: dict[str, np.ndarray]) -> Metrics:
    """Compute each judge's share with binomial standard error, and the panel mean with standard error over prompts."""
    metrics: Metrics = {}
    for name, as_wanted in verdicts.items():
        share = float(as_wanted.mean())
        metrics[f"eval/{name}_share"] = share
        metrics[f"eval/{name}_share_stderr"] = math.sqrt(share * (1 - share) / len(as_wanted))
    panel = np.mean(list(verdicts.values()), axis=0)  # per prompt
    metrics["eval/panel_share"] = float(panel.mean())
    metrics["eval/panel_share_stderr"] = float(panel.std() / math.sqrt(len(panel)))
    return metrics
