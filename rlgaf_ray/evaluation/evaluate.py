"""All held-out measures of one generator, side by side with the SFT model it started from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from rlgaf_ray.evaluation.judge import SentimentJudge
from rlgaf_ray.evaluation.text import degenerate_share, distinct_n, self_bleu, two_sample_accuracy, vader_share
from rlgaf_ray.types import Metrics

BASELINE = ("eval/judge_share", "eval/perplexity", "eval/distinct_2")


def gap_closed(share: float, sft_share: float, real_share: float) -> float:
    """How far the share moved from the SFT model's to that of real text: 0 at the start, 1 at the ceiling.

    (share - sft_share) / (real_share - sft_share); 0 where there is no gap. A judge that errs at random shrinks
    numerator and denominator alike.
    """
    gap = real_share - sft_share
    return (share - sft_share) / gap if gap else 0.0


class Evaluator:
    """Built once a run; each call measures one set of generated samples.

    The first call is the SFT model's, before any adversarial update: later calls are compared with it. ``state_dict``
    keeps that baseline for a resumed run. ``real_texts`` are the real answers to the evaluation's prompts, decoded like
    the samples: prompt and response, in the prompts' order.
    """

    def __init__(
        self, judge: SentimentJudge, real_texts: Sequence[str], target: Literal["positive", "negative"] = "positive"
    ) -> None:
        self._judge = judge
        self._real_texts = list(real_texts)
        self._target = target
        self._judge_share_real = self._judge_share(self._real_texts)
        self._vader_share_real = vader_share(self._real_texts, target)
        self._baseline: dict[str, float] = {}

    def __call__(
        self,
        response_ids: Sequence[np.ndarray],
        texts: Sequence[str],
        *,
        sample_nll: float,
        real_nll: float,
    ) -> Metrics:
        """Measure one sample per prompt, in the prompts' order.

        ``response_ids``: the responses' tokens; ``texts``: prompt and response, decoded. ``sample_nll``: mean negative
        log-likelihood of the samples' response tokens under the frozen SFT model; ``real_nll``: that of the real
        responses under the generator that is measured; both in nats per token.
        """
        assert len(response_ids) == len(texts) == len(self._real_texts), "one sample per evaluation prompt"
        share = self._judge_share(texts)
        metrics: Metrics = {
            "eval/judge_share": share,
            "eval/judge_share_stderr": math.sqrt(share * (1 - share) / len(texts)),
            "eval/judge_share_real": self._judge_share_real,
            "eval/judge_accuracy": self._judge.accuracy,
            "eval/judge_accuracy_window": self._judge.accuracy_window,
            "eval/vader_share": vader_share(texts, self._target),
            "eval/vader_share_real": self._vader_share_real,
            "eval/perplexity": math.exp(sample_nll),
            "eval/real_nll": real_nll,
            "eval/distinct_1": distinct_n(response_ids, 1),
            "eval/distinct_2": distinct_n(response_ids, 2),
            "eval/distinct_3": distinct_n(response_ids, 3),
            "eval/self_bleu": self_bleu(texts),
            "eval/two_sample_accuracy": two_sample_accuracy(self._real_texts, texts),
            "eval/degenerate_share": degenerate_share(response_ids),
            "eval/response_tokens": float(np.mean([len(ids) for ids in response_ids])),
        }
        if not self._baseline:
            self._baseline = {name: metrics[name] for name in BASELINE}
        sft = self._baseline
        metrics["eval/judge_share_sft"] = sft["eval/judge_share"]
        metrics["eval/gap_closed"] = gap_closed(share, sft["eval/judge_share"], self._judge_share_real)
        metrics["eval/perplexity_ratio"] = metrics["eval/perplexity"] / sft["eval/perplexity"]
        # A baseline without a single 2-gram has nothing to lose: any generator keeps all of it.
        metrics["eval/distinct_2_ratio"] = (
            metrics["eval/distinct_2"] / sft["eval/distinct_2"] if sft["eval/distinct_2"] else 1.0
        )
        return metrics

    def state_dict(self) -> dict[str, float]:
        """The SFT model's numbers; empty before the first call."""
        return dict(self._baseline)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        if state and set(state) != set(BASELINE):
            raise ValueError(f"damaged evaluation state {dict(state)}: expected nothing or {', '.join(BASELINE)}")
        self._baseline = dict(state)

    def _judge_share(self, texts: Sequence[str]) -> float:
        positive = self._judge.share_positive(texts)
        return positive if self._target == "positive" else 1 - positive
