"""The cache folders of the warm-ups, and the input of the labelled one; no model is trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from pydantic import BaseModel
from ray.train import ControllerError

from rlgaf_ray.actors import placement, warmup, warmup_worker
from rlgaf_ray.actors.packing import Node
from rlgaf_ray.actors.warmup import Warmups, prepare_warmups
from rlgaf_ray.config import Config, ConfigError, load_config, with_values
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.built_in import FOLDER
from rlgaf_ray.models.generator import build_tiny_gpt2
from rlgaf_ray.sweep.space import DECIDE_CONTRAST, DECIDE_WARMUP, FIXED, READ_CONTRAST
from rlgaf_ray.training.warmup import Worker
from rlgaf_ray.types import Demonstration

LAST_TWO = "discriminator={view: last_tokens, view_tokens: 2}"


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(warmup, "_made", lambda *arguments: True)
    keys = {"base_key": (), "warmup_key": (), "end_ids": (), "legal": None}
    task = SimpleNamespace(checksum="data", demonstrations=[], discriminator_warmup=None, warmup_blocks=len, **keys)
    tokenizer = SimpleNamespace(
        backend_tokenizer=SimpleNamespace(to_str=lambda: "tokenizer"),
        eos_token_id=0,
        get_vocab=lambda: {str(token_id): token_id for token_id in range(4096)},
        all_special_ids=[0],
    )

    def make(*overrides: str, config: Config | None = None) -> Warmups:
        config = config or load_config(None, overrides)
        return prepare_warmups(config, task, tokenizer, tmp_path, lambda *_: None)  # type: ignore[arg-type]

    return make


def test_base_is_the_model_before_sft(prepared) -> None:
    without = prepared("warmup.sft.steps=0")
    assert without.base == without.generator == FOLDER
    tuned = prepared("warmup.sft.steps=5")
    assert tuned.base == FOLDER and tuned.generator.name.startswith("sft-")
    new = prepared("warmup.sft.steps=5", "model.generator=tiny-gpt2")
    assert new.base.name.startswith("generator-") and new.generator.name.startswith("sft-")


def test_contrast_is_sampled_only_from_the_base_model(prepared) -> None:
    sampled = prepared().contrast
    assert sampled.name.startswith("contrast-")
    assert prepared("discriminator.contrast_samples=2").contrast != sampled
    assert prepared("warmup.sft.steps=5").contrast == sampled
    assert prepared("discriminator.contrast_weight=0").contrast is None
    assert prepared("discriminator.contrast=labels").contrast is None


def test_each_discriminator_view_has_its_own_warmup(prepared) -> None:
    shared = "generator.reinforce.credit=sequence"
    views = [[], ["discriminator.view=without_end"], [LAST_TWO], [LAST_TWO.replace("2", "3")]]
    views.append([LAST_TWO, "discriminator.match_lengths=true"])
    folders = {prepared(shared, *view).discriminator for view in views}
    assert len(folders) == len(views)


BASES = (
    ["generator.algorithm=gumbel"],
    ["generator.reinforce.credit=sequence", "discriminator={view: last_tokens, view_tokens: 2}"],
    ["generator.reinforce.credit=sequence", "discriminator.architecture=generative"],
)
"""Together they admit another value of every key that is part of a cache key."""


def leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted key, the value and the type of every setting."""
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{key}.")
        else:
            yield key, value, field.annotation


def others(value: Any, annotation: Any) -> list[Any]:
    """Return other values to try."""
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, 2 * value]
        case float():
            return [0.0, value / 2, value + 0.1]
        case tuple():
            return [list(reversed(value))]
        case str() if get_origin(annotation) is Literal:
            return [each for each in get_args(annotation) if each != value]
        case str():
            return [f"{value} x"]
        case _:
            return [True, 1, 0.5, "x"]


def test_every_key_of_a_warmup_is_known_to_sweeps(prepared) -> None:
    deciding, sections = set(), {"task", "model", "warmup"}
    for words in BASES:
        base = load_config(None, ["warmup.sft.steps=5", *words])
        usual = prepared(config=base)
        for key, value, annotation in leaves(base):
            if key.startswith(tuple(f"{section}." for section in (*sections, *FIXED))) or key in FIXED:
                continue
            for other in others(value, annotation):
                try:
                    changed = with_values(base, {key: other})
                except ConfigError:
                    continue
                if prepared(config=changed) != usual:
                    deciding.add(key)
                    break
    assert deciding == {*DECIDE_WARMUP, *DECIDE_CONTRAST, *READ_CONTRAST} - sections


def test_workers_find_a_model_given_by_a_relative_path(
    prepared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray Train runs its workers in another working directory."""
    payloads: list[dict[str, object]] = []

    def made(*arguments: Any) -> bool:
        payloads.append(arguments[3])
        return True

    monkeypatch.setattr(warmup, "_made", made)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FOLDER, "model")
    prepared("model.generator=model")
    assert payloads[0]["stage"] == "generator"
    assert payloads[0]["source"] == str(tmp_path / "model")


def test_warmups_are_cached_by_model_content(prepared, tmp_path: Path) -> None:
    """Two different models at the same path get two entries; the same model at two paths shares one."""
    (tmp_path / "model").mkdir()

    def folders(weights: bytes, settings: str = "{}", name: str = "model") -> list[Path | None]:
        shutil.copy(FOLDER / "config.json", tmp_path / name)
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        (tmp_path / name / "tokenizer_config.json").write_text(settings)
        made = prepared(f"model.generator={tmp_path / name}", "warmup.generator.steps=0", "warmup.sft.steps=3")
        return [made.generator, made.discriminator, made.contrast]

    first = folders(b"one")
    ends = folders(b"one", '{"eos_token": "<end>", "pad_token": "<pad>"}')
    template = folders(b"one", '{"chat_template": "{{ messages }}"}')
    other = folders(b"two")
    assert len({path for made in (first, ends, template, other) for path in made}) == 4 * len(first)
    assert folders(b"one") == first
    (tmp_path / "elsewhere").mkdir()
    assert folders(b"one", name="elsewhere") == first


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [[5, 6, 7, 0], [8]]),
        (["discriminator.view=without_end"], [[5, 6, 7], [8]]),
        ([LAST_TWO], [[7, 0], [8]]),
        ([LAST_TWO, "discriminator.match_lengths=true"], [[6, 7], [8]]),
    ],
)
def test_the_labelled_warmup_uses_the_training_view(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overrides: list[str], expected: list[list[int]]
) -> None:
    build_tiny_gpt2(vocab_size=16, end_of_text_id=0, seed=0).save_pretrained(tmp_path)
    read: list[Demonstration] = []
    monkeypatch.setattr(warmup_worker, "_worker", lambda name, payload: Worker(rank=1, num_workers=2))
    monkeypatch.setattr(warmup_worker, "warm_up_discriminator", lambda model, windows, *_, **__: read.extend(windows))
    prompt = np.array([3], np.int32)
    windows = [Demonstration(prompt, np.array(row, np.int32)) for row in ([5, 6, 7, 0], [8])]
    warmup_worker.discriminator_worker(
        {
            "stage": "discriminator",
            "config": load_config(None, overrides),
            "data": (windows, np.array([1, 0])),
            "pad_token_id": 0,
            "vocabulary": (64, 0),
            "source": tmp_path,
        }
    )
    assert [item.response_ids.tolist() for item in read] == expected
    assert all(item.prompt_ids.tolist() == [3] for item in read)


class Trainer:
    """Instead of Ray Train: records what a warm-up asks for, and fails if told to."""

    made: list[Trainer]
    failure: Exception | None

    def __init__(self, train: object, *, train_loop_config: object, scaling_config: Any, run_config: Any) -> None:
        self.scaling, self.limits = scaling_config, run_config.failure_config
        self.made.append(self)

    def fit(self) -> None:
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs a warm-up on a cluster with these nodes."""

    def make(nodes: list[Node], *overrides: str, failure: Exception | None = None) -> Trainer:
        Trainer.made, Trainer.failure = [], failure
        monkeypatch.setattr(placement, "cluster_nodes", lambda: nodes)
        monkeypatch.setattr(warmup.ray, "put", lambda data: data)
        monkeypatch.setattr(warmup.ray, "available_resources", lambda: {"CPU": 1.0})
        monkeypatch.setattr(warmup, "TorchTrainer", Trainer)
        payload = {"config": load_config(None, overrides)}
        warmup._run(lambda payload: None, payload, list, tmp_path / "sft-0", lambda *_: None)
        return Trainer.made[0]

    return make


WHOLE, SHARED = "cluster.gpus_per_actor=1", "cluster.gpus_per_actor=0.15"


@pytest.mark.parametrize(
    ("nodes", "overrides", "workers"),
    [
        ([Node(1)], [], []),  # in this process
        ([Node(2), Node(1)], ["warmup.num_workers=3"], [{"CPU": 1.0}] * 3),
        ([Node(8, 1)], [SHARED], [{"GPU": 0.15}]),
        ([Node(8, 1)], [WHOLE], [{"GPU": 1.0}]),
        ([Node(8, 1), Node(8, 1)], [SHARED, "warmup.num_workers=2"], [{"GPU": 1.0}] * 2),  # NCCL: a GPU for each
    ],
)
def test_ray_train_is_asked_for_what_the_workers_need(run, nodes: list[Node], overrides: list[str], workers) -> None:
    asked = run(nodes, *overrides)
    assert asked.scaling.num_workers == len(workers)
    if workers:
        assert [asked.scaling._resources_per_worker_not_none] * len(workers) == workers
    assert asked.limits.max_failures == 1
    assert asked.limits.controller_failure_limit == 2  # by default Ray Train starts the workers again for ever


@pytest.mark.parametrize(
    ("nodes", "overrides", "message"),
    [
        (
            [Node(2)],
            ["warmup.num_workers=3"],
            "the warm-ups ask for 3 workers with 1 CPU each (warmup.num_workers), and the cluster has 2 CPUs and 0 "
            "GPUs: set warmup.num_workers=2, or add nodes",
        ),
        (
            [Node(8, 1)],
            [SHARED, "warmup.num_workers=2"],
            "the warm-ups ask for 2 workers with 1 GPU each (warmup.num_workers), and the cluster has 8 CPUs and 1 "
            "GPUs: set warmup.num_workers=1, or add nodes",
        ),
        (
            [Node(8)],
            [SHARED],
            "the warm-ups ask for 1 workers with 0.15 GPU each (warmup.num_workers), and the cluster has 8 CPUs and 0 "
            "GPUs: add nodes",
        ),
    ],
)
def test_workers_that_do_not_fit_are_refused(run, nodes: list[Node], overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(nodes, *overrides)
    assert str(caught.value) == message
    assert not Trainer.made


def test_workers_wait_for_nodes_to_join(run, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, asked = [Node(2)], []

    def join(bundles: list[dict[str, float]]) -> None:
        asked.append(bundles)
        nodes.append(Node(1))

    monkeypatch.setattr(placement, "request_resources", join)
    monkeypatch.setattr(placement.time, "sleep", lambda seconds: None)
    waiting = ("warmup.num_workers=3", "cluster.join_seconds=600")
    assert run(nodes, *waiting).limits.controller_failure_limit == 10  # each start has 60 s
    assert asked[0] == [{"CPU": 1.0}] * 3
    asked.clear()
    run(nodes, *waiting)
    assert not asked  # it would replace what the run has asked for


def test_workers_that_others_keep_from_starting_end_the_run(run) -> None:
    failure = ControllerError(RuntimeError("The start timed out after 60.0 seconds. Potential causes include: (1) ..."))
    with pytest.raises(UserError) as caught:
        run([Node(4)], "warmup.num_workers=3", failure=failure)
    assert str(caught.value) == (
        "sft-0 could not be trained: The start timed out after 60.0 seconds; 1 CPUs and 0 GPUs of the cluster are "
        "free: if other jobs hold the rest, wait for them, or lower warmup.num_workers"
    )


def test_a_cached_warmup_needs_no_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(config: Config) -> None:
        raise AssertionError("checked")

    monkeypatch.setattr(warmup, "check_warmup", refuse)
    nothing: Any = None
    config = load_config(None, ["warmup.num_workers=3"])
    assert warmup._made(tmp_path, nothing, nothing, {}, config, nothing, nothing, warmup._run)
