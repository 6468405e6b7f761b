"""Recovery of a run from actor failures, and messages of its preparation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlgaf_ray.actors.placement import plan_placement
from rlgaf_ray.config import load_config
from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation.embeddings import MISSING
from rlgaf_ray.run import preparation, session
from rlgaf_ray.run import train as train_module
from rlgaf_ray.testing import RecordingCallback


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rollout.num_workers=2"], "2 rollout workers (vllm), the discriminator and the learner"),
        (
            ["rollout.num_workers=1", "learner.num_workers=2", "rollout.engine=transformers"],
            "1 rollout worker (transformers), the discriminator and 2 ranks of the learner",
        ),
    ],
)
def test_actors_of_describes_the_placement(words: list[str], expected: str) -> None:
    config = load_config(None, words)
    placement = plan_placement(config, cluster_cpus=8, cluster_gpus=0, node_cpus=8)
    assert session.actors_of(config, placement) == expected


def test_missing_sentence_embeddings_are_reported_once(
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
    data = preparation.prepare_data(config, tmp_path)
    monkeypatch.setattr(preparation, "load_encode", lambda cache: None)
    reported: list[str] = []
    evaluator = preparation.prepare_evaluator(config, data, tmp_path, report=reported.append)
    assert reported == [MISSING] and "\n" not in MISSING
    answers = [np.arange(8)] * 10
    metrics = evaluator(answers, ["It is 7."] * 10, sample_nll=1.0, real_nll=1.0)
    assert "eval/two_sample_auc" in metrics and "eval/embedding_two_sample_auc" not in metrics
    quiet = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"embeddings": False})})
    monkeypatch.setattr(preparation, "load_encode", None)  # must not be called
    preparation.prepare_evaluator(quiet, data, tmp_path, report=reported.append)
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
            "learning from 3 demonstrations, and from reviews of the other sentiment in the discriminator's contrast",
        ),
        (
            ["discriminator.contrast=labels", "warmup.discriminator.type=labels"],
            "learning from 3 demonstrations, and from reviews of the other sentiment in the discriminator's warm-up "
            "and the discriminator's contrast",
        ),
    ],
)
def test_a_run_reports_which_labels_it_uses(words: list[str], expected: str) -> None:
    task = SimpleNamespace(demonstrations=[None] * 3, unwanted="reviews of the other sentiment", counts=None)
    assert preparation.what_is_learned_from(load_config(None, words), task).startswith(expected)


@pytest.mark.parametrize("limit", [0.5, 0.9])
def test_rows_left_out_are_reported_before_the_warmups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    """Or too many raise an error. data.json records them; the message also counts unused rejected answers."""
    rows = [
        {"prompt": "w " * (200 if row % 5 else 2) + f"{row}?", "chosen": f" is {row % 7}", "rejected": " no"}
        for row in range(1000)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["task.name=jsonl", f"task.jsonl.path={tmp_path}/rows.jsonl", f"task.max_dropped_share={limit}"]
    words += ["task.prompt_tokens=40", "model.generator=tiny-gpt2", "evaluation.num_prompts=10", "run.name=a"]
    words += [f"run.root={tmp_path}", f"warmup.cache={tmp_path}/cache"]
    recording = RecordingCallback()
    made: list[Any] = []

    def prepare_warmups(config: Any, task: Any, tokenizer: Any, *_: Any, **__: Any) -> Any:
        made.append(SimpleNamespace(config=config, data=SimpleNamespace(task=task)))
        raise UserError("stop here")

    monkeypatch.setattr(train_module, "prepare_warmups", prepare_warmups)
    left_out = "800 of 1,000 rows (80%) left out: 800 with a prompt longer than task.prompt_tokens=40"
    with pytest.raises(UserError) as caught:
        train_module.train(load_config(None, words), callbacks=[recording], roles="local")
    if limit == 0.5:
        assert str(caught.value).startswith(left_out) and not made
        return
    assert str(caught.value) == "stop here"
    assert recording.messages[0].startswith(f"{left_out}; parts: base ")
    session.write_run_files(made[0], {"data": "a checksum"})
    written = json.loads((tmp_path / "a" / "data.json").read_text())
    assert written["provenance"] == {"data": "a checksum"} and written["chats"] is False
    described = written["rows"]
    assert described["dropped"] == {"with a prompt longer than task.prompt_tokens=40": 800}
    used = {name: part["used"] for name, part in described["parts"].items()}
    assert sum(used.values()) == described["used"] == 200
    assert described["rejected"] == used["demonstrations"]
    hint = f"; {described['rejected']} rejected answers are not read (discriminator.contrast=labels reads them)"
    assert recording.messages[1].endswith(f"demonstrations, without labels{hint}")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (40, "evaluating the initial policy on 20 prompts"),
        (20, "evaluating the initial policy on 20 prompts"),
        (12, "evaluating the initial policy on 12 prompts, all of the validation split (evaluation.num_prompts=20)"),
    ],
)
def test_an_evaluation_on_fewer_prompts_than_asked_for_says_so(rows: int, sentence: str) -> None:
    config = load_config(None, ["evaluation.num_prompts=20", "warmup.discriminator.steps=0"])
    loop: Any = SimpleNamespace(iteration=0, task=SimpleNamespace(evaluation=lambda part: list(range(rows))))
    assert session.first_wait(config, loop) == sentence
