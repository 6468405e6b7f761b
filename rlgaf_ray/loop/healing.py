"""What is done about the guard's verdict: a warning, an end, or the way back to health.

A heal takes the run back to the newest checkpoint that was written while no symptom was there and before the one that
led to the verdict, with gentler settings (``guard.heal``): lower learning rates, fewer discriminator updates, a higher
KL coefficient, optimisers without the moments of the way there. A reward that is hacked asks for no fewer updates, and
a discriminator that cannot tell for more of them and nothing else. All that is kept of it is the verdict of each heal,
in the checkpoint, which is written anew at once: a resumed run stays healed, and the config stays what the user gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from rlgaf_ray.config.guard import HealSection
from rlgaf_ray.loop.checkpoint import DamagedCheckpoint
from rlgaf_ray.loop.guard import Kind, TrainingStopped, Verdict

if TYPE_CHECKING:
    from rlgaf_ray.data.storage import Place
    from rlgaf_ray.loop.adversarial import AdversarialLoop

ADVICE = {
    "non_finite": "lower generator.learning_rate or discriminator.learning_rate, or set learner.precision=float32",
    "mode_collapse": "raise the KL coefficient, or lower generator.learning_rate",
    "kl_runaway": "raise the KL coefficient, or lower generator.learning_rate",
    "discriminator_saturated": "lower discriminator.updates_per_generator_update or discriminator.learning_rate",
    "discriminator_uninformative": "raise discriminator.updates_per_generator_update or discriminator.learning_rate",
    "reward_hacking": "raise the KL coefficient or discriminator.updates_per_generator_update",
    "drift": "raise the KL coefficient or discriminator.contrast_weight, or end the run earlier",
}


def respond(loop: AdversarialLoop, verdict: Verdict) -> Literal["gone on", "rolled back"]:
    """Act as configured. Raises ``TrainingStopped`` where the run is to end."""
    told, loop.verdict = loop.verdict, verdict.kind
    settings = loop.config.guard
    if verdict.kind == "healthy":
        if told != "healthy":
            _record(loop, verdict, action="none", sentence=f"iteration {loop.iteration}: healthy again")
        return "gone on"
    action = settings.non_finite if verdict.kind == "non_finite" else settings.action
    sentence = f"iteration {loop.iteration}: {verdict.kind}: {verdict.evidence}"
    match action:
        case "warn":
            if verdict.kind != told:
                _record(loop, verdict, action="warn", sentence=f"{sentence}; {ADVICE[verdict.kind]}")
            return "gone on"
        case "heal" if len(loop.healed) < settings.max_heals:
            heal(loop, verdict, sentence)
            return "rolled back"
    if action == "heal":
        sentence += f" (after {len(loop.healed)} heals, guard.max_heals)"
    sentence = f"{sentence}; {loop.checkpoints.intact()}: {ADVICE[verdict.kind]}"
    _record(loop, verdict, action="stop", sentence=None)
    raise TrainingStopped(sentence)


def heal(loop: AdversarialLoop, verdict: Verdict, sentence: str) -> None:
    """Back to health. Raises ``TrainingStopped`` where no healthy checkpoint is left."""
    settings, sick_at, healed = loop.config.guard.heal, loop.iteration, [*loop.healed, verdict.kind]
    path, state = _last_healthy(loop, verdict, sentence)
    kl_coefficient = loop.kl_coefficient
    if _gentler(verdict.kind):
        kl_coefficient = max(settings.kl_floor, settings.kl_factor * kl_coefficient)
    loop.checkpoints.cut(state["iteration"])
    if loop.checkpoints.named("best") is None:
        state["best"] = None
    loop.resume(path, state)
    loop.guard.evaluations.clear()  # gentler settings may end lower and sound: drift is judged from here on
    ratio = loop.update_ratio
    if ratio.adaptive:
        ratio.rate = healed_rate(ratio.rate, healed[len(state["healed"]) :], settings)
        ratio.move(1.0)
    loop.healed, loop.kl_coefficient, loop.verdict = healed, kl_coefficient, "healthy"
    adjust(loop, kl_coefficient=kl_coefficient, refresh=True)
    loop.tracker.cut(loop.iteration)
    loop.save(best=False)
    loop.push()
    changed = (
        f"back to iteration {loop.iteration}, learning rates x {learning_rate_factor(loop):g}, "
        f"{ratio.rate:.3g} discriminator updates per generator update, KL coefficient {kl_coefficient:g}"
    )
    _record(
        loop,
        verdict,
        action="heal",
        sentence=f"{sentence}; heal {len(healed)} of {loop.config.guard.max_heals}: {changed}",
        iteration=sick_at,
        back_to=loop.iteration,
        learning_rate_factor=learning_rate_factor(loop),
        update_rate=ratio.rate,
        kl_coefficient=kl_coefficient,
    )


def adjust(loop: AdversarialLoop, *, kl_coefficient: float | None = None, refresh: bool = False) -> None:
    """Set what follows from the heals; the KL coefficient has its place in the learner's checkpoint."""
    config = loop.config
    if not loop.update_ratio.adaptive:
        rate = config.discriminator.updates_per_generator_update
        loop.update_ratio.rate = healed_rate(rate, loop.healed, config.guard.heal)
    loop.roles.adjust(learning_rate_factor=learning_rate_factor(loop), kl_coefficient=kl_coefficient, refresh=refresh)


def learning_rate_factor(loop: AdversarialLoop) -> float:
    return loop.config.guard.heal.learning_rate_factor ** sum(map(_gentler, loop.healed))


def healed_rate(rate: float, healed: Sequence[Kind], settings: HealSection) -> float:
    """Discriminator updates per generator update after heals of these verdicts, one after the other."""
    for kind in healed:
        match kind:
            case "discriminator_uninformative":
                rate = max(rate * settings.update_rate_raise, 1.0)
            case "reward_hacking":  # fewer updates would leave more to hack
                pass
            case _:
                rate = min(rate * settings.update_rate_factor, settings.update_rate_ceiling)
    return rate


def _gentler(kind: Kind) -> bool:
    """Whether healing this verdict lowers the learning rates and raises the KL coefficient."""
    return kind != "discriminator_uninformative"


def _last_healthy(loop: AdversarialLoop, verdict: Verdict, sentence: str) -> tuple[Place, dict[str, Any]]:
    for path in loop.checkpoints.healthy(verdict.sound_until):
        try:
            return path, loop.checkpoints.load_state(path)
        except DamagedCheckpoint as error:
            loop.callbacks.on_message(f"damaged checkpoint passed over: {error}")
    raise TrainingStopped(f"{sentence}; no healthy checkpoint of iteration {verdict.sound_until} or before is left")


def _record(loop: AdversarialLoop, verdict: Verdict, *, action: str, sentence: str | None, **more: float) -> None:
    """To the screen and to ``guard.jsonl``."""
    loop.tracker.log_verdict(
        {
            "iteration": loop.iteration,
            "verdict": verdict.kind,
            "onset": verdict.onset,
            "evidence": verdict.evidence,
            "action": action,
            "heals": len(loop.healed),
        }
        | more
    )
    if sentence is not None:
        loop.callbacks.on_message(sentence)
