"""Decisions by hand, then the full loop over fake roles whose KL diverges unless the run was rolled back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import pytest

from rlgaf_ray.config import Config, load_config
from rlgaf_ray.config.guard import GuardSection, HealSection
from rlgaf_ray.evaluation.evaluate import Evaluator
from rlgaf_ray.loop.adversarial import AdversarialLoop
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.guard import Kind, TrainingStopped, Verdict
from rlgaf_ray.loop.healing import (
    ADVICE,
    Continue,
    Heal,
    Health,
    Stop,
    kl_coefficient,
    learning_rate_factor,
    respond,
    update_rate,
)
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.loop.roles import Pending, Roles
from rlgaf_ray.testing import FakeRoles, FakeTask, RecordingCallback
from rlgaf_ray.tracking.build import open_trackers
from rlgaf_ray.types import (
    Demonstration,
    Metrics,
    PolicyNetwork,
    Prompt,
    Rollout,
    SamplingSettings,
    ScoredRollout,
    TextBlocks,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class UnstableRoles(FakeRoles):
    """KL diverges from update 14 on; tests choose further failures by iteration."""

    def __init__(self, *, onset: int | None = 14, enough: float = 0.1, coefficient: float = 0.0) -> None:
        super().__init__(onset=onset, enough=enough, coefficient=coefficient)
        self.state["draws"] = []
        self.broken_at: int | None = None
        self.skips: tuple[int, ...] = ()
        self.lost_at = 0
        self.discriminator_skips: list[float] = []

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int]) -> list[Rollout]:
        self.state["draws"].append(prompts[0].prompt_id)
        return super().generate(prompts, sampling, seeds)

    def update_discriminator(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration]
    ) -> Pending:
        skipped = self.discriminator_skips.pop(0) if self.discriminator_skips else 0.0
        return lambda: {"discriminator/skipped_steps": skipped}

    def update_generator(self, scored: Sequence[ScoredRollout], *, iteration: int, text: TextBlocks | None) -> Pending:
        metrics = super().update_generator(scored, iteration=iteration, text=text)()
        if iteration + 1 == self.broken_at:
            self.broken_at = None
            metrics["generator/kl"] = float("nan")
        if iteration + 1 in self.skips:
            metrics |= {"generator/loss": float("nan"), "generator/skipped_steps": 1.0}
        if iteration + 1 == self.lost_at:
            metrics["generator/weight_norm"] = float("inf")
        return lambda: metrics


class Unmeasured:
    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None: ...


class Loop(AdversarialLoop):
    def evaluate(self) -> tuple[Metrics, list[str]]:
        return {"eval/closeness": -0.5}, []

    def quick_evaluation(self) -> Metrics:
        return {"quick/two_sample_auc": 0.5, "quick/judge_share": 0.9}


class Uninformed(Loop):
    """The discriminator is at chance, and a fresh classifier is not, below ``enough`` updates per iteration."""

    enough = 1.0

    def quick_evaluation(self) -> Metrics:
        auc = 0.9 if self.train_step.update_ratio.rate >= self.enough else 0.5
        return {"quick/held_out_auc": auc, "quick/held_out_auc_interval": 0.05, "quick/two_sample_auc": 0.8}


class Insatiable(Uninformed):
    enough = 9.0


class Hacking(Loop):
    """After iteration 20 samples move away from real text while the judged share rises, until a rollback."""

    def quick_evaluation(self) -> Metrics:
        hacked = self.iteration > 20 and not self.healed
        return {
            "quick/held_out_auc": 0.9,
            "quick/held_out_auc_interval": 0.05,
            "quick/two_sample_auc": 0.8 if hacked else 0.6,
            "quick/judge_share": 0.9 if hacked else 0.5,
        }


def settings(*more: str) -> Config:
    return load_config(
        None,
        [
            "run.iterations=40",
            "rollout.batch_size=8",
            "checkpoint.every=3",
            "evaluation.every=0",
            "evaluation.quick_every=0",
            "tracking.to=[]",
            "tracking.rollout_share=0",
            "guard.action=heal",
            "guard.window=4",
            "guard.patience=3",
            "discriminator.held_out=8",
            "discriminator.contrast_weight=0",
            "warmup.discriminator.steps=0",
            *more,
        ],
    )


def run(
    config: Config,
    roles: Roles,
    folder: Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    kind: type[Loop] = Loop,
) -> tuple[Outcome, list[str], AdversarialLoop]:
    loop, callback = ready(config, roles, folder, resume=resume, kind=kind)
    callback.stop_after = stop_after
    return loop.run(), callback.messages, loop


def ready(
    config: Config, roles: Roles, folder: Path, *, resume: bool = False, kind: type[Loop] = Loop
) -> tuple[AdversarialLoop, RecordingCallback]:
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep)
    path, state, _ = checkpoints.newest_usable() if resume else (None, {"iteration": 0}, [])
    trackers = open_trackers(config, folder, start=state["iteration"])
    callback = RecordingCallback()
    tokenizer, evaluator = cast("PreTrainedTokenizerBase", None), cast(Evaluator, Unmeasured())  # not used by Loop
    loop = kind(config, roles, FakeTask(), tokenizer, evaluator, trackers, checkpoints, [callback])
    if path is not None:
        loop.resume(path, state)
    return loop, callback


def rows(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if "time/" not in name and "second" not in name} for row in rows
    ]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "guard.jsonl").read_text().splitlines()]


RUNAWAY = Verdict("kl_runaway", "generator/kl is 0.6", onset=17, last_healthy=13)
BROKEN = Verdict("non_finite", "generator/kl is nan", onset=19, last_healthy=18)
WHERE = "iteration 19: kl_runaway: generator/kl is 0.6"
GENTLER = "raise the KL coefficient, or lower generator.learning_rate"


@pytest.mark.parametrize(
    ("verdict", "before", "heals", "guard", "expected"),
    [
        (Verdict("healthy"), "healthy", [], {}, Continue()),
        (Verdict("healthy"), "drift", [], {}, Continue("none", "iteration 19: healthy again")),
        (RUNAWAY, "healthy", [], {}, Continue("warn", f"{WHERE}; {GENTLER}")),
        (RUNAWAY, "drift", [], {}, Continue("warn", f"{WHERE}; {GENTLER}")),
        (RUNAWAY, "kl_runaway", [], {}, Continue()),  # already reported
        (RUNAWAY, "kl_runaway", [], {"action": "stop"}, Stop(WHERE, GENTLER)),
        (RUNAWAY, "healthy", ["drift"], {"action": "heal"}, Heal(WHERE, ["drift", "kl_runaway"])),
        (RUNAWAY, "healthy", ["drift"], {"action": "heal", "max_heals": 1},
         Stop(f"{WHERE} (guard.max_heals=1 reached)", GENTLER)),
        (BROKEN, "healthy", [], {"action": "warn", "non_finite": "heal"},
         Heal("iteration 19: non_finite: generator/kl is nan", ["non_finite"])),
        (BROKEN, "healthy", [], {"action": "heal"},
         Stop("iteration 19: non_finite: generator/kl is nan", ADVICE["non_finite"])),
    ],
)  # fmt: skip
def test_decisions_by_hand(
    verdict: Verdict, before: Kind, heals: list[Kind], guard: dict[str, Any], expected: Continue | Stop | Heal
) -> None:
    assert respond(verdict, Health(19, before, heals), GuardSection(**guard)) == expected


def test_every_verdict_has_advice() -> None:
    assert set(ADVICE) == set(get_args(Kind)) - {"healthy"}


@pytest.mark.parametrize(
    ("rate", "healed", "expected"),
    [
        (10.0, ["kl_runaway"], 0.5),  # the ceiling
        (10.0, ["mode_collapse", "drift"], 0.25),
        (0.0, ["discriminator_uninformative"], 1.0),
        (0.2, ["discriminator_uninformative"], 1.0),
        (0.2, ["discriminator_uninformative"] * 2, 2.0),
        (0.2, ["discriminator_uninformative"] * 3, 4.0),
        (1.5, ["discriminator_uninformative"], 3.0),  # no ceiling
        (0.2, ["discriminator_uninformative", "discriminator_saturated"], 0.5),
        (2.0, ["reward_hacking", "reward_hacking"], 2.0),
    ],
)
def test_update_rate_after_rollbacks_by_hand(rate: float, healed: list[Kind], expected: float) -> None:
    assert update_rate(HealSection(), healed, rate) == expected


def test_learning_rates_and_kl_coefficient_after_rollbacks_by_hand() -> None:
    settings = HealSection(learning_rate_factor=0.5, kl_factor=2.0, kl_floor=0.1)
    heals: list[Kind] = ["kl_runaway", "discriminator_uninformative", "reward_hacking"]
    assert [learning_rate_factor(settings, heals[:count]) for count in range(4)] == [1.0, 0.5, 0.5, 0.25]
    assert [kl_coefficient(settings, kind, 0.07) for kind in heals] == [0.14, 0.07, 0.14]
    assert kl_coefficient(settings, "drift", 0.0) == 0.1  # the floor


def test_warm_up_trains_only_the_discriminator_on_initial_rollouts(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Counting(FakeRoles):
        def update_discriminator(
            self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration]
        ) -> Pending:
            seen.append((self.version, len(fake)))
            return super().update_discriminator(real, fake, contrast)

    words = ["warmup.discriminator.steps=5", "run.iterations=2", "discriminator.updates_per_generator_update=1"]
    _, _, loop = run(settings(*words), Counting(), tmp_path / "rollouts")
    assert seen == [(0, 8)] * 5 + [(0, 8), (1, 8)]  # version of the policy that sampled, number of rollouts
    assert loop.train_step.discriminator_version == 7
    seen.clear()
    run(settings(*words, "warmup.discriminator.type=labels"), Counting(), tmp_path / "labels")
    assert len(seen) == 2


def test_quick_evaluations_do_not_choose_the_best_checkpoint(tmp_path: Path) -> None:
    config = settings("run.iterations=12", "evaluation.every=6", "evaluation.quick_every=3")
    _, _, loop = run(config, UnstableRoles(), tmp_path)
    logged = rows(tmp_path)
    assert [row["iteration"] for row in logged if "quick/judge_share" in row] == [3, 9]  # 6 and 12 are full ones
    assert [row["iteration"] for row in logged if "eval/closeness" in row] == [0, 6, 12]
    assert loop.best.value == -0.5
    assert [at for at, _, _ in loop.guard.evaluations] == [6, 12]


def test_a_rollback_goes_before_the_onset_and_ends_healthy(tmp_path: Path) -> None:
    """KL after update 15 is 0.42, 16: 0.82, ...; averages of 4 pass 0.5 at 17, and the guard fires at 19.

    The last healthy iteration is 17 - 4 = 13, so the target is checkpoint 12, although 15 and 18 exist.
    """
    roles = UnstableRoles()
    config = settings("discriminator.updates_per_generator_update=10", "evaluation.every=10")
    outcome, messages, loop = run(config, roles, tmp_path)
    assert outcome.iteration == 40 and not outcome.interrupted
    (event,) = events(tmp_path)
    assert (event["iteration"], event["onset"], event["back_to"]) == (19, 17, 12)
    assert (event["verdict"], event["action"], event["heals"]) == ("kl_runaway", "heal", 1)
    assert (event["learning_rate_factor"], event["update_rate"], event["kl_coefficient"]) == (0.5, 0.5, 0.1)
    assert len(messages) == 1 and "rollback 1 of 3 to iteration 12" in messages[0]
    logged = rows(tmp_path)
    assert [row["iteration"] for row in logged] == list(range(41))  # rolled back, then continued
    assert [row["discriminator/update_rate"] for row in logged[1:]] == [10.0] * 12 + [0.5] * 28
    assert [row["guard/heals"] for row in logged[1:]] == [0.0] * 12 + [1.0] * 28
    assert {row["guard/healthy"] for row in logged[1:]} == {1.0}
    assert logged[13]["generator/moments"] == 1.0  # reset; 13 otherwise
    assert roles.learning_rate_factor == 0.5
    assert [at for at, _, _ in loop.guard.evaluations] == [20, 30, 40]  # not 10, which was before the rollback
    draws = roles.state["draws"]
    assert len(draws) == 40  # prompts continue from the checkpoint, none skipped
    calm = UnstableRoles(onset=None)
    run(config, calm, tmp_path / "calm")
    assert draws == calm.state["draws"]


def test_callbacks_follow_a_rollback(tmp_path: Path) -> None:
    config = settings("discriminator.updates_per_generator_update=10", "evaluation.every=10")
    loop, callback = ready(config, UnstableRoles(), tmp_path)
    loop.run()
    assert [(at, verdict.kind) for at, verdict in callback.verdicts] == [(19, "kl_runaway")]
    assert list(callback.evaluations) == [0, 10, 20, 30, 40]
    checkpoints = [at for at, _ in callback.checkpoints]
    assert checkpoints[:9] == [0, 3, 6, 9, 10, 12, 15, 18, 12]  # 10 is the best; 12 again, after the rollback
    assert checkpoints[-1] == 40


@pytest.mark.parametrize("stop_after", [12, 16, 25], ids=["before", "unstable", "rolled_back"])
def test_a_run_resumed_around_a_rollback_equals_an_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    config = settings("discriminator.updates_per_generator_update=10")
    run(config, UnstableRoles(), tmp_path / "uninterrupted")
    run(config, UnstableRoles(), tmp_path / "resumed", stop_after=stop_after)
    resumed = UnstableRoles()
    _, _, loop = run(config, resumed, tmp_path / "resumed", resume=True)
    assert rows(tmp_path / "resumed") == rows(tmp_path / "uninterrupted")
    assert (loop.healed, resumed.learning_rate_factor, loop.train_step.update_ratio.rate) == (["kl_runaway"], 0.5, 0.5)


def test_a_rollback_survives_a_kill_right_after_it(tmp_path: Path) -> None:
    """The restored checkpoint is rewritten with the new settings and is the newest one."""

    class Killed(Exception):
        pass

    roles = UnstableRoles()
    push = roles.push_weights

    def killed(policy_version: int, *, network: PolicyNetwork = "policy") -> Pending:
        if roles.learning_rate_factor < 1:
            raise Killed
        return push(policy_version, network=network)

    roles.push_weights = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run(settings(), roles, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    path, state, _ = checkpoints.newest_usable()
    assert (path.name, state["healed"]) == ("step_000012", ["kl_runaway"])
    assert checkpoints.named("latest") == path
    resumed = UnstableRoles()
    outcome, _, loop = run(settings(), resumed, tmp_path, resume=True)
    assert (outcome.iteration, len(loop.healed), resumed.state["coefficient"]) == (40, 1, 0.1)


def test_rollbacks_get_stronger_and_are_limited(tmp_path: Path) -> None:
    """The KL coefficient doubles from 0.1, learning and update rates halve; the third verdict stops the run."""
    config = settings("guard.max_heals=2", "discriminator.updates_per_generator_update=0.4")
    with pytest.raises(TrainingStopped, match=r"kl_runaway.*guard.max_heals=2 reached.*is intact"):
        run(config, UnstableRoles(enough=9.0), tmp_path)
    found = events(tmp_path)
    assert [event["action"] for event in found] == ["heal", "heal", "stop"]
    assert [event["kl_coefficient"] for event in found[:2]] == [0.1, 0.2]
    assert [event["learning_rate_factor"] for event in found[:2]] == [0.5, 0.25]
    assert [event["update_rate"] for event in found[:2]] == [0.2, 0.1]
    assert rows(tmp_path)[-1]["guard/healthy"] == 0.0


def test_before_the_first_checkpoint_the_run_rolls_back_to_the_start(tmp_path: Path) -> None:
    """Unstable from update 4 on, before the first window is complete: there is a checkpoint of iteration 0."""
    outcome, _, _ = run(settings("checkpoint.every=30"), UnstableRoles(onset=4), tmp_path)
    assert outcome.iteration == 40
    assert [event["back_to"] for event in events(tmp_path)] == [0]
    assert [row["iteration"] for row in rows(tmp_path)] == list(range(41))


def test_the_checkpoint_for_a_rollback_is_not_pruned(tmp_path: Path) -> None:
    """One is kept and one written per iteration, but iteration 13 is healthy and kept for the verdict at 19."""
    outcome, _, _ = run(settings("checkpoint.every=1", "checkpoint.keep=1"), UnstableRoles(), tmp_path)
    assert outcome.iteration == 40
    assert [event["back_to"] for event in events(tmp_path)] == [13]


def test_a_damaged_checkpoint_is_skipped(tmp_path: Path) -> None:
    run(settings(), UnstableRoles(), tmp_path, stop_after=16)
    (tmp_path / "checkpoints/step_000012/roles.json").write_text("{}")
    _, messages, _ = run(settings(), UnstableRoles(), tmp_path, resume=True)
    assert "damaged checkpoint skipped" in messages[0]
    assert [event["back_to"] for event in events(tmp_path)] == [9]


def test_non_finite_metrics_cause_a_rollback_if_configured(tmp_path: Path) -> None:
    roles = UnstableRoles(onset=None)
    roles.broken_at = 17
    run(settings("guard.non_finite=heal", "guard.action=warn"), roles, tmp_path)
    (event,) = events(tmp_path)
    assert (event["verdict"], event["onset"], event["back_to"]) == ("non_finite", 17, 15)
    assert [row["iteration"] for row in rows(tmp_path)] == list(range(41))


def test_skipped_steps_are_tolerated_up_to_the_patience(tmp_path: Path) -> None:
    roles = UnstableRoles(onset=None)
    roles.skips = (5, 6, 21, 22, 23, 24)
    with pytest.raises(TrainingStopped, match=r"iteration 23: non_finite: generator/loss is nan; .*step_000021"):
        run(settings("guard.action=warn", "checkpoint.keep=20"), roles, tmp_path)
    (event,) = events(tmp_path)
    assert (event["verdict"], event["onset"], event["action"]) == ("non_finite", 21, "stop")
    logged = rows(tmp_path)
    assert [row["iteration"] for row in logged] == list(range(24))
    assert [row["iteration"] for row in logged if row.get("generator/skipped_steps")] == [5, 6, 21, 22, 23]
    assert logged[6]["generator/loss"] is None
    states = {path.name: json.loads((path / "state.json").read_text()) for path in tmp_path.glob("checkpoints/step_*")}
    assert [name for name, state in sorted(states.items()) if not state["healthy"]] == ["step_000006", "step_000021"]


def test_too_many_skipped_steps_roll_back_before_the_first(tmp_path: Path) -> None:
    roles = UnstableRoles(onset=None)
    roles.skips = (21, 22, 23)
    with pytest.raises(TrainingStopped, match=r"guard.max_heals=3 reached"):  # the fake roles learn nothing
        run(settings("guard.non_finite=heal", "guard.action=warn"), roles, tmp_path)
    assert [event.get("back_to") for event in events(tmp_path)] == [18, 18, 18, None]


def test_non_finite_weights_are_never_checkpointed(tmp_path: Path) -> None:
    """A verdict with action=warn persists since 19; the last iteration leaves non-finite weights."""
    roles = UnstableRoles(enough=1000.0)
    roles.lost_at = 40
    with pytest.raises(TrainingStopped, match=r"iteration 40: non_finite: generator/weight_norm is inf"):
        run(settings("guard.action=warn", "checkpoint.every=20"), roles, tmp_path)
    assert [event["verdict"] for event in events(tmp_path)] == ["kl_runaway", "non_finite"]
    assert not (tmp_path / "checkpoints/step_000040").exists()


def test_skipped_discriminator_steps_are_summed_over_an_iteration(tmp_path: Path) -> None:
    roles = UnstableRoles(onset=None)
    roles.discriminator_skips = [1.0, 0.0, 1.0, 0.0]
    run(settings("discriminator.updates_per_generator_update=4", "run.iterations=2"), roles, tmp_path)
    assert [row.get("discriminator/skipped_steps") for row in rows(tmp_path)] == [None, 2.0, 0.0]


def test_an_adaptive_rate_is_lowered_and_stays_adaptive(tmp_path: Path) -> None:
    config = settings("discriminator.update_ratio.mode=adaptive", "discriminator.updates_per_generator_update=2.0")
    run(config, UnstableRoles(), tmp_path)
    """The accuracy is 0.75, the upper edge of the band: the log rate falls by 0.1 per iteration."""
    rates = [row["discriminator/update_rate"] for row in rows(tmp_path)[1:]]
    assert rates[11] == pytest.approx(2.0 * np.exp(-0.1 * 12))
    (event,) = events(tmp_path)
    assert event["update_rate"] == pytest.approx(rates[11] / 2)
    assert rates[13] == pytest.approx(event["update_rate"] * np.exp(-0.1 * 2))


READ = ("evaluation.quick_every=5", "checkpoint.every=1", "checkpoint.keep=1")


def test_an_uninformative_discriminator_is_updated_more_and_nothing_else_changes(tmp_path: Path) -> None:
    """A frozen one is at chance at 5, 10 and 15: roll back to 5, which was kept, and continue with 1 update."""
    roles = UnstableRoles(onset=None, coefficient=0.03)
    config = settings(*READ, "discriminator.updates_per_generator_update=0")
    outcome, messages, loop = run(config, roles, tmp_path, kind=Uninformed)
    assert outcome.iteration == 40 and loop.healed == ["discriminator_uninformative"]
    (event,) = events(tmp_path)
    assert (event["verdict"], event["action"]) == ("discriminator_uninformative", "heal")
    assert (event["iteration"], event["back_to"]) == (15, 5)
    assert (event["learning_rate_factor"], event["update_rate"], event["kl_coefficient"]) == (1.0, 1.0, 0.03)
    assert (roles.learning_rate_factor, roles.state["coefficient"]) == (1.0, 0.03)
    assert [row["discriminator/update_rate"] for row in rows(tmp_path)[1:]] == [0.0] * 5 + [1.0] * 35
    assert len(messages) == 1 and "1 discriminator updates per generator update" in messages[0]


def test_an_adaptive_rate_is_raised_within_its_bounds(tmp_path: Path) -> None:
    """The log rate falls by 0.1 per iteration, from 3 to 3 exp(-0.5) at iteration 5. A rollback doubles it, up to 3."""
    ratio = ["discriminator.update_ratio.mode=adaptive", "discriminator.update_ratio.maximum=3"]
    config = settings(*READ, *ratio, "discriminator.updates_per_generator_update=3", "guard.max_heals=1")
    with pytest.raises(TrainingStopped, match="discriminator_uninformative"):
        run(config, UnstableRoles(onset=None), tmp_path, kind=Insatiable)
    assert events(tmp_path)[0]["update_rate"] == 3.0
    assert rows(tmp_path)[6]["discriminator/update_rate"] == pytest.approx(3.0 * np.exp(-0.1))


@pytest.mark.parametrize("stop_after", [5, 12, 20], ids=["before", "unstable", "rolled_back"])
def test_a_raised_rate_survives_a_resume(tmp_path: Path, stop_after: int) -> None:
    config = settings(*READ, "discriminator.updates_per_generator_update=0.2")
    run(config, UnstableRoles(onset=None), tmp_path / "uninterrupted", kind=Uninformed)
    run(config, UnstableRoles(onset=None), tmp_path / "resumed", stop_after=stop_after, kind=Uninformed)
    resumed = UnstableRoles(onset=None)
    _, _, loop = run(config, resumed, tmp_path / "resumed", resume=True, kind=Uninformed)
    assert rows(tmp_path / "resumed") == rows(tmp_path / "uninterrupted")
    assert (loop.train_step.update_ratio.rate, resumed.learning_rate_factor) == (1.0, 1.0)


def test_reward_hacking_keeps_the_update_rate(tmp_path: Path) -> None:
    """Readings at 5, 10, ...: the mean of 20, 25 and 30 is 0.13 above that of the first three; before them is 15."""
    roles = UnstableRoles(onset=None, coefficient=0.1)
    config = settings(*READ, "discriminator.updates_per_generator_update=2")
    outcome, _, _ = run(config, roles, tmp_path, kind=Hacking)
    assert outcome.iteration == 40
    (event,) = events(tmp_path)
    assert (event["verdict"], event["action"]) == ("reward_hacking", "heal")
    assert (event["iteration"], event["back_to"]) == (30, 15)
    assert (event["learning_rate_factor"], event["update_rate"], event["kl_coefficient"]) == (0.5, 2.0, 0.2)
    assert {row["discriminator/update_rate"] for row in rows(tmp_path)[1:]} == {2.0}


def test_warn_reports_once_and_continues(tmp_path: Path) -> None:
    outcome, messages, _ = run(settings("guard.action=warn"), UnstableRoles(), tmp_path)
    assert outcome.iteration == 40
    assert len(messages) == 1
    assert messages[0].startswith("iteration 19: kl_runaway: generator/kl is ")
    assert messages[0].endswith("; raise the KL coefficient, or lower generator.learning_rate")
    assert [row["guard/healthy"] for row in rows(tmp_path)[1:]] == [1.0] * 18 + [0.0] * 22
    states = [json.loads(path.read_text()) for path in sorted((tmp_path / "checkpoints").glob("step_*/state.json"))]
    assert {state["healthy"] for state in states} == {False}


def test_stop_keeps_the_metrics_of_the_last_iteration(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match=r"^iteration 19: kl_runaway: .*; the last checkpoint, step_000018, is"):
        run(settings("guard.action=stop"), UnstableRoles(), tmp_path)
    assert rows(tmp_path)[-1]["iteration"] == 19


def test_held_out_rows_are_never_trained_on(tmp_path: Path) -> None:
    seen: set[int] = set()

    class Watched(FakeRoles):
        def update_discriminator(
            self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration]
        ) -> Pending:
            seen.update(int(item.prompt_ids[0]) for item in (*real, *contrast))
            seen.update(item.prompt_id for item in fake)
            return lambda: {}

    words = ["discriminator.updates_per_generator_update=1", "discriminator.contrast_weight=1"]
    _, _, loop = run(settings(*words), Watched(), tmp_path)
    assert loop.train_step.held_out is not None
    assert len(seen) == 32 and not seen & set(loop.train_step.held_out.rows.tolist())


def test_guard_time_includes_the_engines_weight_check(tmp_path: Path) -> None:
    class Checking(FakeRoles):
        def push_weights(self, policy_version: int, *, network: PolicyNetwork = "policy") -> Pending:
            super().push_weights(policy_version, network=network)
            return lambda: {"check_seconds": 5.0}

    run(settings("run.iterations=3"), Checking(), tmp_path)
    _, *logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 3 and all(5.0 < row["time/guards"] < 6.0 for row in logged)
