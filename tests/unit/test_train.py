"""What a run does about actors that it lost, one after the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rlgaf_ray import train
from rlgaf_ray.actors.answers import ActorFailure, ActorSpent
from rlgaf_ray.actors.placement import plan_placement
from rlgaf_ray.actors.recovery import TooManyLost
from rlgaf_ray.config import load_config
from rlgaf_ray.evaluation.embeddings import MISSING
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.report.console import Terminal

DEAD = ActorFailure("the learner died during update")
SPENT = ActorSpent("the learner ran out of memory during update")
End = tuple[int, ActorFailure | TooManyLost | None]  # the iteration it reached, and the loss there, if any


def outcomes(monkeypatch: pytest.MonkeyPatch, folder: Path, ends: Sequence[End], rescued: list[int]) -> list[int]:
    """Where each loop ended, if the run bears all losses. No checkpoint is there, so each loop begins again.

    ``rescued`` gets the iteration of each loop whose last state was to be saved.
    """
    reached: list[int] = []

    class Losing:
        iteration = 0
        stop_requested = False

        def run(self) -> list[int]:
            self.iteration, failure = ends[len(reached)]
            reached.append(self.iteration)
            if failure is not None:
                raise failure
            return reached

        def rescue(self) -> None:
            rescued.append(self.iteration)

    @contextmanager
    def losing(*arguments: object, **options: object):
        yield Losing()

    monkeypatch.setattr(train, "adversarial_loop", losing)
    config, checkpoints = load_config(None, ["cluster.max_recoveries=2"]), Checkpoints(folder, keep=1)
    anything: object = None
    return train.run_through_losses(  # type: ignore[return-value]
        config,
        anything,
        anything,
        anything,
        checkpoints,
        Terminal(),
        None,
        stop=train.Stop(),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "ends",
    [
        [(5, DEAD), (5, DEAD), (9, None)],
        [(5, SPENT), (7, SPENT), (9, None)],  # farther each time
        [(5, SPENT), (5, DEAD), (9, None)],
    ],
)
def test_losses_are_borne(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: list[End]) -> None:
    rescued: list[int] = []
    assert outcomes(monkeypatch, tmp_path, ends, rescued) == [at for at, _ in ends]
    assert rescued == [at for at, failure in ends if failure is not None]


@pytest.mark.parametrize("again", [5, 3])
def test_an_actor_that_needs_too_much_memory_at_the_same_place_again_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, again: int
) -> None:
    with pytest.raises(ActorSpent, match="ran out of memory"):
        outcomes(monkeypatch, tmp_path, [(5, SPENT), (again, SPENT), (9, None)], [])


def test_one_loss_too_many_ends_the_run_once_what_is_left_was_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rescued: list[int] = []
    with pytest.raises(TooManyLost, match="more than 2 actors were lost"):
        outcomes(monkeypatch, tmp_path, [(5, DEAD), (6, DEAD), (7, DEAD), (9, None)], rescued)
    assert rescued == [5, 6, 7]
    rescued.clear()
    with pytest.raises(TooManyLost):  # of rollout workers, which the loop replaces by itself
        outcomes(monkeypatch, tmp_path, [(5, TooManyLost("rollout worker 0 died"))], rescued)
    assert rescued == [5]


@pytest.mark.parametrize(
    "words, expected",
    [
        (["rollout.num_workers=2"], "2 rollout workers (vllm), the discriminator and the learner"),
        (
            ["rollout.num_workers=1", "learner.num_workers=2", "rollout.engine=transformers"],
            "1 rollout worker (transformers), the discriminator and 2 ranks of the learner",
        ),
    ],
)
def test_the_actors_are_described(words: list[str], expected: str) -> None:
    config = load_config(None, words)
    placement = plan_placement(config, cluster_cpus=8, cluster_gpus=0, node_cpus=8)
    assert train.actors_of(config, placement) == expected


def test_a_run_without_sentence_embeddings_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.dumps({"prompt": f"What is {row}?", "response": f"It is {row}."}) for row in range(200)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    task = [
        "task.name=jsonl",
        f"task.jsonl.path={tmp_path / 'pairs.jsonl'}",
        "model.generator=tiny-gpt2",
        "task.prompt_tokens=28",
    ]
    config = load_config(None, [*task, "evaluation.num_prompts=10", "evaluation.quick_prompts=10"])
    data = train.prepare_data(config, tmp_path)
    monkeypatch.setattr(train, "load_encode", lambda cache: None)
    reported: list[str] = []
    evaluator = train.prepare_evaluator(config, data, tmp_path, report=reported.append)
    assert reported == [MISSING] and "\n" not in MISSING
    answers = [np.arange(8)] * 10
    metrics = evaluator(answers, ["It is 7."] * 10, sample_nll=1.0, real_nll=1.0)
    assert "eval/two_sample_auc" in metrics and "eval/embedding_two_sample_auc" not in metrics
    quiet = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"embeddings": False})})
    monkeypatch.setattr(train, "load_encode", None)  # not even looked for
    train.prepare_evaluator(quiet, data, tmp_path, report=reported.append)
    assert reported == [MISSING]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "learning from 3 demonstrations, without labels"),
        (
            ["discriminator.contrast=labels", "discriminator.contrast_weight=0"],
            "learning from 3 demonstrations, without",
        ),
        (
            ["discriminator.contrast=labels"],
            "learning from 3 demonstrations, and the discriminator from reviews of the other sentiment in its contrast",
        ),
        (
            ["discriminator.contrast=labels", "warmup.discriminator.type=labels"],
            "learning from 3 demonstrations, and the discriminator from reviews of the other sentiment in its warm-up "
            "and its contrast",
        ),
    ],
)
def test_a_run_says_first_which_labels_it_reads(words: list[str], expected: str) -> None:
    task = SimpleNamespace(demonstrations=[None] * 3)
    assert train.what_is_learned_from(load_config(None, words), task).startswith(expected)  # type: ignore[arg-type]
