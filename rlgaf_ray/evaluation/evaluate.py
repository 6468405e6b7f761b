"""All held-out metrics of a generator, compared with real text and with the initial SFT model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rlgaf_ray.data.task import Measure
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.distance import Copying, two_sample_embeddings, two_sample_texts
from rlgaf_ray.evaluation.embeddings import Encode
from rlgaf_ray.evaluation.text import degenerate_share, distinct_n, self_bleu
from rlgaf_ray.types import Metrics

BASELINE = ("eval/perplexity", "eval/distinct_2", "eval/real_nll")


def word_distances(real_texts: Sequence[str], texts: Sequence[str]) -> Metrics:
    """Run the two-sample test on words; row i of both answers the same prompt."""
    words = two_sample_texts(real_texts, texts)
    return {
        "eval/two_sample_accuracy": words.accuracy,
        "eval/two_sample_auc": words.auc,
        "eval/two_sample_auc_stderr": words.auc_stderr,
    }


class Evaluator:
    """Measures sets of generated samples; created once per run.

    The first call must be the SFT model, before any adversarial update; it is the baseline of later calls.
    ``state_dict`` preserves the baseline for a resumed run.

    ``real_ids`` and ``real_texts`` are the real responses to the evaluation prompts, in order: their tokens, and the
    part the task evaluates, decoded like the samples. ``demonstrations``: response tokens to check for copying.
    ``encode``: sentence embeddings, if available.
    """

    def __init__(
        self,
        measure: Measure,
        real_ids: Sequence[np.ndarray],
        real_texts: Sequence[str],
        *,
        demonstrations: Sequence[np.ndarray],
        encode: Encode | None = None,
    ) -> None:
        self.measure = measure
        self._real_texts = list(real_texts)
        self._copying = Copying(demonstrations)
        self._encode = encode
        self._real_embeddings = None if encode is None else encode(real_texts)
        self._real = {f"{name}_real": value for name, value in self._surface(real_ids, real_texts).items()}
        self._names = {*BASELINE, *measure.baseline}
        self._baseline: dict[str, float] = {}

    def __call__(
        self,
        response_ids: Sequence[np.ndarray],
        texts: Sequence[str],
        *,
        sample_nll: float,
        real_nll: float,
    ) -> Metrics:
        """Measure one sample per prompt, in the order of the prompts.

        ``response_ids``: response tokens; ``texts``: the part of each that the task evaluates, decoded. ``sample_nll``:
        mean negative log-likelihood of the samples under the frozen SFT model; ``real_nll``: that of the real responses
        under the measured generator; both in nats per token.
        """
        assert len(response_ids) == len(texts) == len(self._real_texts), "one sample per evaluation prompt"
        metrics: Metrics = {
            **self.measure(texts),
            **self._surface(response_ids, texts),
            **self._real,
            **self._distances(texts),
            "eval/perplexity": math.exp(sample_nll),
            "eval/real_nll": real_nll,
        }
        metrics |= self.measure.derived(metrics)
        if not self._baseline:
            if absent := sorted(self._names - set(metrics)):
                raise UserError(f"{type(self.measure).__name__}.baseline has {absent[0]}, which it does not measure")
            self._baseline = {name: metrics[name] for name in sorted(self._names)}
        sft = self._baseline
        metrics |= self.measure.compared(metrics, sft)
        metrics["eval/perplexity_real"] = math.exp(sft["eval/real_nll"])
        metrics["eval/perplexity_ratio"] = metrics["eval/perplexity"] / sft["eval/perplexity"]
        # If the baseline has no 2-grams, any generator keeps its full diversity.
        metrics["eval/distinct_2_ratio"] = (
            metrics["eval/distinct_2"] / sft["eval/distinct_2"] if sft["eval/distinct_2"] else 1.0
        )
        return metrics

    def quick(self, texts: Sequence[str]) -> Metrics:
        """Compute cheap ``quick/`` metrics on the first prompts; for monitoring only, not for model selection."""
        measured = self.measure.quick(texts)
        auc = two_sample_texts(self._real_texts[: len(texts)], texts).auc
        return {f"quick/{name}": value for name, value in measured.items()} | {"quick/two_sample_auc": auc}

    def state_dict(self) -> dict[str, float]:
        """Return the SFT model's metrics; empty before the first call."""
        return dict(self._baseline)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the baseline. Raises ``UserError`` for missing or unknown metrics."""
        if state and set(state) != self._names:
            expected = ", ".join(sorted(self._names))
            raise UserError(f"corrupted evaluation state {dict(state)}: expected no metrics or {expected}")
        self._baseline = dict(state)

    def _surface(self, response_ids: Sequence[np.ndarray], texts: Sequence[str]) -> Metrics:
        """Compute the metrics that apply to both samples and real text."""
        return {
            "eval/distinct_1": distinct_n(response_ids, 1),
            "eval/distinct_2": distinct_n(response_ids, 2),
            "eval/distinct_3": distinct_n(response_ids, 3),
            "eval/self_bleu": self_bleu(texts),
            "eval/copied": self._copying.share(response_ids),
            "eval/degenerate_share": degenerate_share(response_ids),
            "eval/response_tokens": float(np.mean([len(ids) for ids in response_ids])),
        }

    def _distances(self, texts: Sequence[str]) -> Metrics:
        metrics = word_distances(self._real_texts, texts)
        if self._encode is not None and self._real_embeddings is not None:
            embedded = two_sample_embeddings(self._real_embeddings, self._encode(texts))
            metrics["eval/embedding_two_sample_auc"] = embedded.auc
            metrics["eval/embedding_two_sample_auc_stderr"] = embedded.auc_stderr
        return metrics
