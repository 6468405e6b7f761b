"""Pure functions: the action on a verdict of the guard, and the settings after a rollback (``guard.action=heal``).

A rollback restores the newest checkpoint without symptoms from before the onset, resets the optimisers' moments, and
continues with gentler settings (``guard.heal``): lower learning rates, fewer discriminator updates and a higher KL
coefficient. After reward_hacking the update rate stays; after discriminator_uninformative it is raised, and nothing
else changes. The checkpoint, rewritten at once, stores the verdict of each rollback, from which the settings follow: a
resumed run keeps them, and the config stays as the user wrote it.
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
    "drift": "raise the KL coefficient or discriminator.contrast_weight, or stop the run earlier",
}


@dataclass(frozen=True, slots=True)
class Health:
    """State of the loop when it acts on a verdict."""

    iteration: int
    verdict: Kind  # the last reported one
    heals: Sequence[Kind]  # the verdicts behind all rollbacks so far


@dataclass(frozen=True, slots=True)
class Continue:
    """Continue training. ``action``: its name in ``guard.jsonl``, with a message to print; None: nothing to report."""

    action: Literal["none", "warn"] | None = None
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the run with this message and advice."""

    sentence: str
    advice: str


@dataclass(frozen=True, slots=True)
class Heal:
    """Roll back. ``heals``: the verdicts behind all rollbacks, including this one."""

    sentence: str
    heals: list[Kind]


def respond(verdict: Verdict, health: Health, settings: GuardSection) -> Continue | Stop | Heal:
    """Return the configured action; a persisting verdict is reported once."""
    where, kind = f"iteration {health.iteration}", verdict.kind
    if kind == "healthy":
        return Continue() if health.verdict == kind else Continue("none", f"{where}: healthy again")
    sentence = f"{where}: {kind}: {verdict.evidence}"
    match settings.non_finite if kind == "non_finite" else settings.action:
        case "warn":
            return Continue() if health.verdict == kind else Continue("warn", f"{sentence}; {ADVICE[kind]}")
        case "heal" if len(health.heals) < settings.max_heals:
            return Heal(sentence, [*health.heals, kind])
        case "heal":
            sentence += f" (guard.max_heals={settings.max_heals} reached)"
    return Stop(sentence, ADVICE[kind])


def learning_rate_factor(settings: HealSection, heals: Sequence[Kind]) -> float:
    """Return the factor of both learning rates after rollbacks for these verdicts."""
    return settings.learning_rate_factor ** sum(map(_gentler, heals))


def update_rate(settings: HealSection, heals: Sequence[Kind], rate: float) -> float:
    """Return the discriminator updates per generator update after rollbacks for these verdicts, from ``rate``."""
    for kind in heals:
        match kind:
            case "discriminator_uninformative":
                rate = max(rate * settings.update_rate_raise, 1.0)
            case "reward_hacking":  # fewer updates would make the reward easier to hack
                pass
            case _:
                rate = min(rate * settings.update_rate_factor, settings.update_rate_ceiling)
    return rate


def kl_coefficient(settings: HealSection, kind: Kind, coefficient: float) -> float:
    """Return the KL coefficient after one rollback for this verdict."""
    return max(settings.kl_floor, settings.kl_factor * coefficient) if _gentler(kind) else coefficient


def _gentler(kind: Kind) -> bool:
    """Whether a rollback for this verdict lowers the learning rates and raises the KL coefficient."""
    return kind != "discriminator_uninformative"
