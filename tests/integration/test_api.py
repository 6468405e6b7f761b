"""A run from Python: in a thread, without Ray, stopped and resumed by its caller."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rlgaf_ray as rl
from rlgaf_ray.testing import FakeDiscriminator, RecordingCallback, RecordingTracker
from rlgaf_ray.training.policy import KLController, Policy
from rlgaf_ray.types import Metrics, SequenceBatch, TrainBatch

TINY = [
    "model.generator=tiny-gpt2",
    "task.response_tokens=8",
    "warmup.generator.steps=2",
    "warmup.sft.steps=2",
    "warmup.discriminator.steps=2",
    "rollout.engine=transformers",
    "rollout.batch_size=8",
    "discriminator.batch_size=8",
    "learner.precision=float32",
    "evaluation.num_prompts=10",
    "evaluation.num_samples=2",
    "evaluation.embeddings=false",
]
"""A run of seconds without Ray."""


def small_run(folder: Path, *more: str) -> rl.Config:
    """Four iterations on pairs."""
    pairs = [{"prompt": f"what is {n} and {n}?", "response": f"it is {2 * n}, of course"} for n in range(150)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    words = [
        "run.name=api",
        f"run.root={folder}",
        "run.iterations=4",
        "task.name=jsonl",
        f"task.jsonl.path={folder}/pairs.jsonl",
        "task.prompt_tokens=16",
        f"warmup.cache={folder}/cache",
        "evaluation.every=2",
        "checkpoint.every=2",
    ]
    return rl.load_config(None, [*TINY, *words, *more])


def test_a_run_in_a_thread_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def no_ray(*arguments: object, **settings: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", no_ray)
    torch.set_num_threads(1)
    config = small_run(tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    first = RecordingCallback(stop_after=1)

    def run() -> None:
        torch.set_num_threads(1)  # each thread has a setting of its own
        rl.train(config, roles="local", callbacks=[first])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    (stopped,) = first.outcomes
    assert first.warmups == {"generator", "sft"}  # the discriminator's is on rollouts
    assert first.iterations == [0, 1] and list(first.evaluations) == [0]
    saved, checkpoint = first.checkpoints[-1]
    assert (saved, checkpoint.name) == (1, "step_000001")
    assert stopped.interrupted and stopped.iteration == 1
    assert (stopped.evaluated, stopped.last, stopped.samples) == (0, {}, []) and stopped.first
    assert not (tmp_path / "api" / "samples.jsonl").exists()

    second, logged = RecordingCallback(), RecordingTracker()
    outcome = rl.train(config, resume=True, roles="local", callbacks=[second], trackers=[logged])
    assert second.outcomes == [outcome] and not outcome.interrupted
    assert second.warmups == set() and second.iterations == [2, 3, 4]
    assert [at for at, _ in logged.metrics] == [2, 3, 4]
    assert [(at, name) for at, name, _ in logged.tables] == [(2, "rollouts"), (4, "rollouts"), (4, "samples")]
    assert outcome.first == stopped.first and (outcome.evaluated, outcome.last) == (4, second.evaluations[4])
    assert len(outcome.samples) == 2 and all(before and after for before, after in outcome.samples)
    assert capsys.readouterr().out == ""
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    assert outcome.folder == tmp_path / "api"
    exported = load_file(tmp_path / "api" / "generator" / "model.safetensors")
    state = outcome.generator().state_dict()
    assert exported and all(torch.equal(state[name], tensor) for name, tensor in exported.items())
    assert outcome.tokenizer().decode(outcome.tokenizer().encode("it is 2")) == "it is 2"

    with pytest.raises(rl.UserError, match=r"api exists: add --resume"):
        rl.train(config, roles="local")


def test_a_discriminator_can_be_passed_in(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = small_run(tmp_path, "generator.reinforce.credit=sequence", "generator.reinforce.baseline=leave_one_out")
    outcome = rl.train(config, roles="local", discriminator=FakeDiscriminator)
    updates = int(2 + 4 * config.discriminator.updates_per_generator_update)  # the warm-up's and the iterations'
    assert (Path(str(outcome.folder)) / "discriminator" / "updates.txt").read_text() == str(updates)


class Unadorned(rl.Algorithm):
    """The plain policy gradient, and a count of its updates, which a checkpoint keeps."""

    def __init__(self, folder: Path, config: rl.Config, policy: Policy, *, pad_token_id: int) -> None:
        self.kl = KLController(config.generator.active.kl)
        self.updates = 0

    def update(
        self,
        policy: Policy,
        batch: TrainBatch,
        sequence_rewards: torch.Tensor,
        iteration: int,
        text: SequenceBatch | None,
    ) -> Metrics:
        assert text is not None, "the section in use asks for demonstrations"
        assert len(sequence_rewards) == len(batch.sequences.token_ids) == 8
        loss = -(sequence_rewards * policy.logprobs(batch.sequences).sum(1)).mean()
        loss.backward()
        self.updates += 1
        return {"loss": loss.item(), "count": float(self.updates), **policy.step(iteration)}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.updates = state["updates"]


def test_an_algorithm_can_be_passed_in_and_is_resumed(tmp_path: Path) -> None:
    torch.set_num_threads(1)

    def rows(name: str, *, stop_after: int | None = None, resume: bool = False) -> list[Metrics]:
        config = small_run(tmp_path, f"run.name={name}", "run.iterations=2", "checkpoint.every=1")
        follower = RecordingCallback(stop_after)
        rl.train(config, roles="local", algorithm=Unadorned, callbacks=[follower], resume=resume)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        read = [json.loads(line) for line in lines]
        return [{key: value for key, value in row.items() if key.startswith("generator/")} for row in read]

    whole = rows("whole")
    rows("cut", stop_after=1)
    resumed = rows("cut", resume=True)
    assert [row.get("generator/count") for row in resumed] == [None, 1.0, 2.0]
    assert resumed == whole
    weights = [load_file(tmp_path / name / "generator" / "model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())
    saved = tmp_path / "cut" / "checkpoints" / "step_000002" / "learner" / "algorithm.json"
    assert json.loads(saved.read_text())["algorithm"]["updates"] == 2
