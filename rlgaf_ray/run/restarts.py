"""Run the loop to its end, with restarts from the last checkpoint after failures of actors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from rlgaf_ray.actors.answers import ActorFailure, ActorNotStarted, ActorsNotPlaced, ActorUnusable, possible_bug
from rlgaf_ray.actors.recovery import Recoveries, TooManyFailures
from rlgaf_ray.loop.callback import Callbacks
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.loop.rewards import RewardFailed
from rlgaf_ray.loop.roles import Roles
from rlgaf_ray.run.preparation import Prepared
from rlgaf_ray.run.session import Resumed, first_wait, open_loop
from rlgaf_ray.tracking.base import Tracker


def run_with_recovery(
    prepared: Prepared,
    build_roles: Callable[[Recoveries], Roles],
    checkpoints: Checkpoints,
    callbacks: Callbacks,
    resumed: Resumed | None,
    trackers: Sequence[str | Tracker] = (),
) -> Outcome:
    """Run the loop; if an actor fails that cannot be replaced in place, restart it from the last checkpoint.

    Raises ``TooManyFailures``, ``RewardFailed``, and an ``ActorFailure`` that a restart would not fix. If the last
    failure may be a bug, raises its error from the actor instead, with the remote traceback.
    """
    try:
        return _restart_until_done(prepared, build_roles, checkpoints, callbacks, resumed, trackers)
    except (ActorFailure, TooManyFailures) as failure:
        error = possible_bug(failure)
        if error is None:
            raise
        hint = f"{checkpoints.intact()}: continue with --resume {prepared.config.run.again}"
        callbacks.on_message(f"{failure}; {hint}")
        raise error from None


class Standstill:
    """Tells whether failures repeat without progress, so that a further restart would not help either."""

    def __init__(self, tolerated: int) -> None:
        """``tolerated``: failures without progress, beside the first one."""
        self.tolerated = tolerated
        self.reached = -1
        self.repeated = 0

    def holds(self, reached: int) -> bool:
        """Count one more failure, at iteration ``reached``."""
        self.repeated = self.repeated + 1 if reached <= self.reached else 0
        self.reached = reached
        return self.repeated > self.tolerated


def _restart_until_done(
    prepared: Prepared,
    build_roles: Callable[[Recoveries], Roles],
    checkpoints: Checkpoints,
    callbacks: Callbacks,
    resumed: Resumed | None,
    trackers: Sequence[str | Tracker],
) -> Outcome:
    config = prepared.config
    recoveries = Recoveries(config.cluster, callbacks.on_message)
    started = False
    out_of_memory = Standstill(0)
    broken = Standstill(config.cluster.max_recoveries - 1)  # as ``recoveries``, but without its window
    while True:
        reached = 0
        try:
            with (
                closing(build_roles(recoveries)) as roles,
                open_loop(prepared, roles, checkpoints, callbacks, resumed, trackers=trackers) as loop,
                callbacks.training(start=loop.iteration, total=config.run.iterations, first=first_wait(config, loop)),
            ):
                started = True
                try:
                    return loop.run()
                except (ActorFailure, TooManyFailures, RewardFailed):
                    reached = loop.iteration
                    loop.rescue()
                    raise
        except ActorFailure as failure:
            if not started and isinstance(failure, ActorNotStarted):
                raise failure.__cause__ or failure from None  # a bug, with the remote traceback
            if callbacks.stop_requested or not started:
                raise
            if possible_bug(failure) is not None:
                if broken.holds(reached):
                    raise
            elif isinstance(failure, ActorUnusable) and out_of_memory.holds(reached):
                raise
            if isinstance(failure, ActorsNotPlaced):  # nothing has run since ``resumed`` was chosen
                recoveries.record(failure, "asking for them again")
            else:
                resumed = resume_after_failure(checkpoints, recoveries, failure)


def resume_after_failure(checkpoints: Checkpoints, recoveries: Recoveries, failure: ActorFailure) -> Resumed | None:
    """Return the checkpoint to restart from after the learner or discriminator failed; None: restart from scratch.

    Raises ``TooManyFailures``.
    """
    if not checkpoints.all():
        recoveries.record(failure, "restarting the run, which has no checkpoint yet")
        recoveries.rolled_back()
        return None
    resumed = checkpoints.newest_usable()
    report_damaged_checkpoints(resumed, recoveries.report)
    path, state, _ = resumed
    recoveries.record(failure, f"rolling back to iteration {state['iteration']} ({path})")
    recoveries.rolled_back()
    return resumed


def report_damaged_checkpoints(resumed: Resumed, report: Callable[[str], None]) -> None:
    """Report each damaged checkpoint that was skipped."""
    for sentence in resumed[2]:
        report(f"damaged checkpoint skipped: {sentence}")
