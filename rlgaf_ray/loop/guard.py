"""The guard: detects unstable training in a window of metrics. It returns a verdict; the loop acts on it.

Each iteration it averages the metrics of the last ``guard.window`` iterations and compares them with ``guard.limits``.
A symptom is an average beyond its limit; a verdict is a symptom that persists for ``guard.patience`` consecutive
iterations, so that noise does not fire it. Limits that depend on the task are relative to the run's start, the averages
over its first window; before that only non-finite metrics are judged. Those fire at once, except if they only made an
optimiser skip its step: then after ``guard.non_finite_patience`` consecutive iterations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rlgaf_ray.config.guard import GuardSection
from rlgaf_ray.errors import UserError
from rlgaf_ray.loop.non_finite import broken, not_finite, skipped_steps
from rlgaf_ray.metrics import metric
from rlgaf_ray.types import Metrics

Kind = Literal[
    "healthy",
    "mode_collapse",
    "discriminator_saturated",
    "discriminator_uninformative",
    "reward_hacking",
    "kl_runaway",
    "drift",
    "non_finite",
]

WATCHED = (
    "rollout/distinct_2",
    "rollout/degenerate_share",
    "rollout/identical_share",
    "rollout/reference_nll",
    "generator/entropy",
    "generator/kl",
    "generator/kl_exact",
    "reward/mean",
    "reward/deviation",
    "discriminator/held_out_accuracy",
    "discriminator/held_out_logit_gap",
)
DRIFT_EVALUATIONS = 2  # consecutive evaluations below the limit: a single one may be noise


@dataclass(frozen=True, slots=True)
class Verdict:
    """``onset``: first iteration with the symptom; ``last_healthy``: last iteration that is surely free of it."""

    kind: Kind
    evidence: str = ""
    onset: int = 0
    last_healthy: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """One evaluation: how well the discriminator and a fresh classifier separate samples from real text."""

    iteration: int
    auc: float  # of the discriminator, on held-out real and generated responses
    interval: float  # half-width of its 95 % interval
    two_sample_auc: float  # AUC of a fresh linear classifier
    reward: float  # mean over the window
    judge_share: float  # 0 if the task has no judge

    @classmethod
    def of(cls, iteration: int, metrics: Metrics, reward: float) -> Reading | None:
        """Read the full or quick evaluation of an iteration; None if it has neither."""
        for prefix, discriminator in (("eval/", "discriminator/"), ("quick/", "quick/")):
            if f"{prefix}two_sample_auc" in metrics and f"{discriminator}held_out_auc" in metrics:
                return cls(
                    iteration,
                    metrics[f"{discriminator}held_out_auc"],
                    metrics[f"{discriminator}held_out_auc_interval"],
                    metrics[f"{prefix}two_sample_auc"],
                    reward,
                    metrics.get(f"{prefix}judge_share", 0.0),
                )
        return None


def _mean(readings: Sequence[Reading], name: str) -> float:
    return sum(getattr(reading, name) for reading in readings) / len(readings)


class TrainingStopped(UserError):
    """The guard stopped the run; the message has the evidence and the checkpoint to resume from."""


class Guard:
    """Turns metrics into verdicts.

    ``quality``: metric of the evaluations that measures quality. ``contrast``: the discriminator is trained with
    contrast rows, so its optimum is log p_real / (p_policy + w p_contrast) up to a constant. It then need not separate
    real text from the policy's, and is uninformative only if it prefers the policy's.
    """

    def __init__(self, settings: GuardSection, *, quality: str, contrast: bool = False) -> None:
        self.settings = settings
        self.quality = quality
        self.contrast = contrast
        self.rows: list[Metrics] = []  # watched metrics of the last window
        self.start: Metrics = {}  # averages over the first window
        self.onsets: dict[Kind, int] = {}  # of all current symptoms
        self.evaluations: list[tuple[int, float, float]] = []  # iteration, quality, mean reward of the window
        self.readings: list[Reading] = []  # of all evaluations, full and quick

    def examine(self, iteration: int, metrics: Metrics) -> Verdict:
        """Update the window and return the verdict: non-finite metrics first, else the oldest symptom."""
        self._take(iteration, metrics)
        found: dict[Kind, str] = dict(self._symptoms(metrics))
        self.onsets = {kind: self.onsets.get(kind, iteration) for kind in found}
        for kind, onset in sorted(self.onsets.items(), key=lambda item: (item[0] != "non_finite", item[1])):
            held = iteration - onset + 1
            match kind:
                case "non_finite":
                    if broken(metrics) or held >= self.settings.non_finite_patience:
                        return Verdict(kind, found[kind], onset, last_healthy=onset - 1)
                case "discriminator_uninformative" | "reward_hacking":  # already averaged over several readings
                    before = self._reading_before(self.settings.limits.readings)
                    return Verdict(kind, found[kind], onset, last_healthy=before)
                case "drift":  # already confirmed by a second evaluation
                    return Verdict(kind, found[kind], onset, last_healthy=self._best()[0])
                case _ if held >= self.settings.patience:
                    return Verdict(kind, found[kind], onset, last_healthy=max(0, onset - self.settings.window))
        return Verdict("healthy")

    def earliest_rollback(self, iteration: int) -> int:
        """Oldest iteration that a verdict after this iteration may roll back to."""
        earliest = max(0, iteration - self.settings.window - self.settings.patience)
        if not self.readings:
            return earliest
        return min(earliest, self._reading_before(self.settings.limits.readings - 1))  # the next reading adds one

    def _reading_before(self, count: int) -> int:
        """Iteration of the last reading before the newest ``count``, or of the first reading."""
        return self.readings[max(0, len(self.readings) - count - 1)].iteration

    def _take(self, iteration: int, metrics: Metrics) -> None:
        row = {name: metrics[name] for name in WATCHED if name in metrics and math.isfinite(metrics[name])}
        self.rows = [*self.rows, row][-self.settings.window :]
        if not self.start and len(self.rows) == self.settings.window:
            self.start = self._means()
        reward = self._means().get("reward/mean")
        if reward is not None and (reading := Reading.of(iteration, metrics, reward)):
            self.readings.append(reading)
        if self.quality in metrics and reward is not None:
            self.evaluations.append((iteration, metrics[self.quality], reward))

    def _means(self) -> Metrics:
        seen = {name: [row[name] for row in self.rows if name in row] for name in WATCHED}
        return {name: sum(values) / len(values) for name, values in seen.items() if values}

    def _symptoms(self, metrics: Metrics) -> Iterator[tuple[Kind, str]]:
        skipped = skipped_steps(metrics)
        if culprits := not_finite(metrics) or (f"{skipped:g} steps were skipped" if skipped else ""):
            yield "non_finite", culprits
        now = self._means()
        for kind, name, how, limit in self._checks() if self.start else ():
            if name not in now or name not in self.start:
                continue
            value, start = now[name], self.start[name]
            match how:
                case "fraction of start":
                    exceeded, what = value < limit * start, f"below {limit:g} x the {start:.3g} at the start"
                case "above start":
                    exceeded, what = (
                        value > start + limit,
                        f"more than {limit:g} above the {start:.3g} at the start",
                    )
                case "absolute":
                    exceeded, what = value > limit, f"above {limit:g}"
            if exceeded:
                yield kind, f"{name} is {value:.3g} over the last {len(self.rows)} iterations, {what}"
        if evidence := self._uninformative():
            yield "discriminator_uninformative", evidence
        if evidence := self._hacking():
            yield "reward_hacking", evidence
        if evidence := self._drift():
            yield "drift", evidence

    def _checks(self) -> list[tuple[Kind, str, Literal["fraction of start", "above start", "absolute"], float]]:
        limits = self.settings.limits
        saturated: Kind = "discriminator_saturated"
        return [
            ("mode_collapse", "rollout/distinct_2", "fraction of start", limits.distinct_2_ratio),
            ("mode_collapse", "generator/entropy", "fraction of start", limits.entropy_ratio),
            ("mode_collapse", "rollout/degenerate_share", "above start", limits.degenerate_share),
            ("mode_collapse", "rollout/identical_share", "above start", limits.identical_share),
            ("kl_runaway", "generator/kl", "absolute", limits.kl),
            ("kl_runaway", "generator/kl_exact", "absolute", limits.kl),
            ("kl_runaway", "rollout/reference_nll", "above start", limits.reference_nll),
            (saturated, "discriminator/held_out_accuracy", "absolute", limits.held_out_accuracy),
            (saturated, "discriminator/held_out_logit_gap", "absolute", limits.logit_gap),
            (saturated, "reward/deviation", "fraction of start", limits.reward_deviation_ratio),
        ]

    def _uninformative(self) -> str:
        """Evidence that the discriminator's AUC is at chance and below a fresh linear classifier's; else empty.

        At chance: no interval of a reading lies above 0.5; with contrast the interval of the mean lies below 0.5.
        Below: the classifier's mean AUC is higher by ``auc_margin`` and above 0.5 by the same interval, which is about
        as wide for both, as they score the same rows.
        """
        newest = self.readings[-self.settings.limits.readings :]
        if len(newest) < self.settings.limits.readings:
            return ""
        if any(each.auc - each.interval > 0.5 for each in newest):
            return ""
        auc, linear = _mean(newest, "auc"), _mean(newest, "two_sample_auc")
        interval = _mean(newest, "interval") / math.sqrt(len(newest))
        if linear - auc < self.settings.limits.auc_margin or linear - interval <= 0.5:
            return ""
        if self.contrast and auc + interval >= 0.5:
            return ""
        return (
            f"held-out AUC of the discriminator is {auc:.3f} over the last {len(newest)} evaluations, "
            f"while that of a fresh linear classifier is {linear:.3f}"
        )

    def _hacking(self) -> str:
        """Evidence that samples move away from real text while the reward or the judged share rises; else empty."""
        count, limits = self.settings.limits.readings, self.settings.limits
        if len(self.readings) < 2 * count:
            return ""
        first, newest = self.readings[:count], self.readings[-count:]
        rise = {name: _mean(newest, name) - _mean(first, name) for name in ("two_sample_auc", "reward", "judge_share")}
        if rise["two_sample_auc"] <= limits.two_sample_rise:
            return ""
        risen = [name for name, limit in (("reward", 0.0), ("judge_share", limits.judge_rise)) if rise[name] > limit]
        if not risen:
            return ""
        changes = ", ".join(
            f"{name} from {_mean(first, name):.3f} to {_mean(newest, name):.3f}" for name in ("two_sample_auc", *risen)
        )
        return f"samples move away from real text while they are rewarded more: {changes}"

    def _drift(self) -> str:
        """Evidence that the quality falls while the reward rises; else empty."""
        newest = self.evaluations[-DRIFT_EVALUATIONS:]
        if len(self.evaluations) <= DRIFT_EVALUATIONS:
            return ""
        at, best, reward_then = self._best()
        judged = metric(self.quality)
        allowed = self.settings.limits.quality_fall * (100.0 if judged.percent else 1.0)
        limit = judged.sign * best - allowed
        if any(judged.sign * quality >= limit or reward <= reward_then for _, quality, reward in newest):
            return ""
        _, quality, reward = newest[-1]
        moved = "rose" if judged.better == "lower" else "fell"
        return (
            f"{self.quality} {moved} from {best:.3g} at iteration {at} to {quality:.3g} while reward/mean rose from "
            f"{reward_then:.3g} to {reward:.3g}"
        )

    def _best(self) -> tuple[int, float, float]:
        """Evaluation with the best quality, before the newest ones."""
        sign = metric(self.quality).sign
        return max(self.evaluations[:-DRIFT_EVALUATIONS], key=lambda item: sign * item[1])

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "start": self.start,
            "onsets": self.onsets,
            "evaluations": [list(item) for item in self.evaluations],
            "readings": [asdict(reading) for reading in self.readings],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.start = list(state["rows"]), dict(state["start"])
        self.onsets = dict(state["onsets"])
        self.evaluations = [(iteration, quality, reward) for iteration, quality, reward in state["evaluations"]]
        self.readings = [Reading(**reading) for reading in state["readings"]]
