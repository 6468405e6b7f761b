"""The guard looks at a window of metrics and returns a verdict; what is done about it is the loop's and the config's.

Each iteration the metrics of the last ``guard.window`` iterations are averaged and held against ``guard.limits``: a
symptom is an average beyond its limit, a verdict a symptom that held for ``guard.patience`` iterations in a row, so
that noise raises no alarm. Where a healthy level differs from task to task it is the run's own start, the averages
over its first window. Nothing is judged before that is known, but numbers that are not finite. These never wait, but
where all they did was to have an optimiser's step skipped: then ``guard.non_finite_patience`` iterations in a row.
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
SICK_EVALUATIONS = 2  # in a row: one alone may be noise


@dataclass(frozen=True, slots=True)
class Verdict:
    """``onset``: the iteration in which the symptom was first there; ``sound_until``: the last one surely without."""

    kind: Kind
    evidence: str = ""
    onset: int = 0
    sound_until: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What one evaluation says of the discriminator and of the distance to real text."""

    iteration: int
    auc: float  # of the discriminator on held-out real and generated responses
    interval: float  # half of its 95 % interval
    two_sample_auc: float  # of a fresh linear classifier
    reward: float  # mean over the window
    judge_share: float  # 0 where the task has no judge

    @classmethod
    def of(cls, iteration: int, metrics: Metrics, reward: float) -> Reading | None:
        """Reads a full evaluation, or else a quick one; None in other iterations."""
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
    """The guard ended the run: one sentence that says why, and what is left to go on from."""


class Guard:
    """``quality``: the metric of the evaluations that stands for the quality.

    ``contrast``: the discriminator sees a third kind of text. Its optimum is log p_real / (p_policy + w p_contrast)
    but for a constant. It need not tell real text from the policy's, and is uninformative when it prefers the latter.
    """

    def __init__(self, settings: GuardSection, *, quality: str, contrast: bool = False) -> None:
        self.settings = settings
        self.quality = quality
        self.contrast = contrast
        self.rows: list[Metrics] = []  # of the last window, watched metrics only
        self.start: Metrics = {}  # averages over the first window
        self.onsets: dict[Kind, int] = {}  # of the symptoms that are there now, verdict or not
        self.evaluations: list[tuple[int, float, float]] = []  # iteration, quality, reward of the window
        self.readings: list[Reading] = []  # of all evaluations, quick ones too

    def examine(self, iteration: int, metrics: Metrics) -> Verdict:
        """The verdict after this iteration, of all that was seen so far.

        Where there are more, the longest symptom's; before all others that of numbers that are not finite.
        """
        self._take(iteration, metrics)
        found: dict[Kind, str] = dict(self._symptoms(metrics))
        self.onsets = {kind: self.onsets.get(kind, iteration) for kind in found}
        for kind, onset in sorted(self.onsets.items(), key=lambda item: (item[0] != "non_finite", item[1])):
            held = iteration - onset + 1
            match kind:
                case "non_finite":
                    if broken(metrics) or held >= self.settings.non_finite_patience:
                        return Verdict(kind, found[kind], onset, sound_until=onset - 1)
                case "discriminator_uninformative" | "reward_hacking":  # the patience is in the readings
                    before = self._reading_before(self.settings.limits.readings)
                    return Verdict(kind, found[kind], onset, sound_until=before)
                case "drift":  # the patience lay in the second evaluation
                    return Verdict(kind, found[kind], onset, sound_until=self._best()[0])
                case _ if held >= self.settings.patience:
                    return Verdict(kind, found[kind], onset, sound_until=max(0, onset - self.settings.window))
        return Verdict("healthy")

    def earliest_rollback(self, iteration: int) -> int:
        """The iteration that a verdict after this one leads back to, at the farthest."""
        earliest = max(0, iteration - self.settings.window - self.settings.patience)
        if not self.readings:
            return earliest
        return min(earliest, self._reading_before(self.settings.limits.readings - 1))  # one more is to come

    def _reading_before(self, count: int) -> int:
        """Iteration of the last reading before the newest ``count``, or else of the first."""
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
                case "part of the start":
                    sick, what = value < limit * start, f"below {limit:g} x the {start:.3g} at the start"
                case "above the start":
                    sick, what = (
                        value > start + limit,
                        f"more than {limit:g} above the {start:.3g} at the start",
                    )
                case "level":
                    sick, what = value > limit, f"above {limit:g}"
            if sick:
                yield kind, f"{name} is {value:.3g} over the last {len(self.rows)} iterations, {what}"
        if evidence := self._uninformative():
            yield "discriminator_uninformative", evidence
        if evidence := self._hacking():
            yield "reward_hacking", evidence
        if evidence := self._drift():
            yield "drift", evidence

    def _checks(self) -> list[tuple[Kind, str, Literal["part of the start", "above the start", "level"], float]]:
        limits = self.settings.limits
        saturated: Kind = "discriminator_saturated"
        return [
            ("mode_collapse", "rollout/distinct_2", "part of the start", limits.distinct_2_ratio),
            ("mode_collapse", "generator/entropy", "part of the start", limits.entropy_ratio),
            ("mode_collapse", "rollout/degenerate_share", "above the start", limits.degenerate_share),
            ("mode_collapse", "rollout/identical_share", "above the start", limits.identical_share),
            ("kl_runaway", "generator/kl", "level", limits.kl),
            ("kl_runaway", "generator/kl_exact", "level", limits.kl),
            ("kl_runaway", "rollout/reference_nll", "above the start", limits.reference_nll),
            (saturated, "discriminator/held_out_accuracy", "level", limits.held_out_accuracy),
            (saturated, "discriminator/held_out_logit_gap", "level", limits.logit_gap),
            (saturated, "reward/deviation", "part of the start", limits.reward_deviation_ratio),
        ]

    def _uninformative(self) -> str:
        """The discriminator is at chance, by its interval, while a fresh linear classifier can tell.

        With contrast: below chance, by the interval of the mean over the readings.
        """
        newest = self.readings[-self.settings.limits.readings :]
        if len(newest) < self.settings.limits.readings:
            return ""
        limit = 0.5 + self.settings.limits.told_apart
        if any(each.auc - each.interval > 0.5 or each.two_sample_auc < limit for each in newest):
            return ""
        if self.contrast and _mean(newest, "auc") + _mean(newest, "interval") / math.sqrt(len(newest)) >= 0.5:
            return ""
        return (
            f"held-out AUC of the discriminator is {_mean(newest, 'auc'):.3f} over the last {len(newest)} evaluations, "
            f"while a fresh linear classifier has {_mean(newest, 'two_sample_auc'):.3f}"
        )

    def _hacking(self) -> str:
        """Generated text gets easier to tell from real text while the reward or the judged share rises."""
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
        return f"text gets easier to tell from real text while it is rewarded more: {changes}"

    def _drift(self) -> str:
        """The quality falls while the reward rises: the discriminator pays for something that is not wanted."""
        newest = self.evaluations[-SICK_EVALUATIONS:]
        if len(self.evaluations) <= SICK_EVALUATIONS:
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
        """The evaluation of the best quality before the newest ones."""
        sign = metric(self.quality).sign
        return max(self.evaluations[:-SICK_EVALUATIONS], key=lambda item: sign * item[1])

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
