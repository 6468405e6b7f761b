"""Pure functions: the action that a verdict of the guard calls for, and the settings after a heal.

A heal takes the run back to the newest checkpoint that was written while no symptom was there and before the one that
led to the verdict, with gentler settings (``guard.heal``): lower learning rates, fewer discriminator updates, a higher
KL coefficient, optimisers without the moments of the way there. A reward that is hacked asks for no fewer updates, and
a discriminator that cannot tell for more of them and nothing else. All that is kept of it is the verdict of each heal,
in the checkpoint, which is written anew at once: a resumed run stays healed, and the config stays what the user gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlgaf_ray.config.guard import GuardSection, HealSection
from rlgaf_ray.loop.guard import Kind, Verdict

ADVICE = {
    "non_finite": "lower generator.learning_rate or discriminator.learning_rate, or set learner.precision=float32",
    "mode_collapse": "raise the KL coefficient, or lower generator.learning_rate",
    "kl_runaway": "raise the KL coefficient, or lower generator.learning_rate",
    "discriminator_saturated": "lower discriminator.updates_per_generator_update or discriminator.learning_rate",
    "discriminator_uninformative": "raise discriminator.updates_per_generator_update or discriminator.learning_rate",
    "reward_hacking": "raise the KL coefficient or discriminator.updates_per_generator_update",
    "drift": "raise the KL coefficient or discriminator.contrast_weight, or end the run earlier",
}


@dataclass(frozen=True, slots=True)
class Health:
    """What the loop knows when a verdict comes in."""

    iteration: int
    verdict: Kind  # the last one, which has been reported
    heals: Sequence[Kind]  # the verdict of each heal so far


@dataclass(frozen=True, slots=True)
class GoOn:
    """``action``: what ``guard.jsonl`` calls it, with a sentence for the screen; None: there is nothing to report."""

    action: Literal["none", "warn"] | None = None
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    sentence: str
    advice: str


@dataclass(frozen=True, slots=True)
class Heal:
    """``heals``: the verdicts of all heals, this one included."""

    sentence: str
    heals: list[Kind]


def respond(verdict: Verdict, health: Health, settings: GuardSection) -> GoOn | Stop | Heal:
    """The configured action. A verdict that lasts is reported once."""
    where, kind = f"iteration {health.iteration}", verdict.kind
    if kind == "healthy":
        return GoOn() if health.verdict == kind else GoOn("none", f"{where}: healthy again")
    sentence = f"{where}: {kind}: {verdict.evidence}"
    match settings.non_finite if kind == "non_finite" else settings.action:
        case "warn":
            return GoOn() if health.verdict == kind else GoOn("warn", f"{sentence}; {ADVICE[kind]}")
        case "heal" if len(health.heals) < settings.max_heals:
            return Heal(sentence, [*health.heals, kind])
        case "heal":
            sentence += f" (after {len(health.heals)} heals, guard.max_heals)"
    return Stop(sentence, ADVICE[kind])


def learning_rate_factor(settings: HealSection, heals: Sequence[Kind]) -> float:
    """Factor of both learning rates after heals of these verdicts."""
    return settings.learning_rate_factor ** sum(map(_gentler, heals))


def update_rate(settings: HealSection, heals: Sequence[Kind], rate: float) -> float:
    """Discriminator updates per generator update after heals of these verdicts, one after the other, from ``rate``."""
    for kind in heals:
        match kind:
            case "discriminator_uninformative":
                rate = max(rate * settings.update_rate_raise, 1.0)
            case "reward_hacking":  # fewer updates would leave more to hack
                pass
            case _:
                rate = min(rate * settings.update_rate_factor, settings.update_rate_ceiling)
    return rate


def kl_coefficient(settings: HealSection, kind: Kind, coefficient: float) -> float:
    """The KL coefficient after one heal of this verdict."""
    return max(settings.kl_floor, settings.kl_factor * coefficient) if _gentler(kind) else coefficient


def _gentler(kind: Kind) -> bool:
    """Whether healing this verdict lowers the learning rates and raises the KL coefficient."""
    return kind != "discriminator_uninformative"
