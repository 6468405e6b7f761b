"""Two warm-up workers (gloo, DistributedDataParallel) against one: the same gradient, at lengths that differ."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from rlgaf_ray.config.warmup import DiscriminatorWarmup, GeneratorWarmup, SftWarmup
from rlgaf_ray.models.generator import build_tiny_gpt2
from rlgaf_ray.models.scalar import ScalarModel
from rlgaf_ray.training.sft import fine_tune
from rlgaf_ray.training.warmup import OPTIMIZER, Worker, warm_up_discriminator, warm_up_generator
from rlgaf_ray.types import Demonstration, TextBlocks

VOCABULARY = 64
LEARNED = [12, 2, 11, 3, 12, 2, 10, 2, 5]  # tokens of each row: one worker gets the long ones
LIMIT_SECONDS = 120
ROLES = ("generator", "sft", "discriminator")


def warm_up(role: str, model_folder: Path, out: Path, worker: Worker) -> None:
    """Two steps of which the first is saved: Adam's first moment is then a tenth of its gradient."""
    shared: dict[str, Any] = {"steps": 2, "batch_size": len(LEARNED), "max_grad_norm": 1e9}
    common: dict[str, Any] = {"precision": "float32", "seed": 0, "checkpoint_every": 1, "worker": worker}
    generator = np.random.default_rng(0)
    if role == "generator":
        token_ids = generator.integers(1, VOCABULARY, (len(LEARNED), 14)).astype(np.int32)
        learned = (np.arange(14) >= 1) & (np.arange(14) < 1 + np.array(LEARNED)[:, None])
        model = build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=1)
        warm_up_generator(model, TextBlocks(token_ids, learned), GeneratorWarmup(**shared), **common)
    elif role == "sft":  # two prompts: the other one is the only one to draw, whatever the rank
        demonstrations = [
            Demonstration(np.array([3, row % 2], np.int32), generator.integers(1, VOCABULARY, count).astype(np.int32))
            for row, count in enumerate(LEARNED)
        ]
        model = build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=1)
        settings = SftWarmup(**shared, dropout=0.0, contrastive_weight=1.0, contrastive_prompts=2)
        fine_tune(model, demonstrations, settings, **common)
    else:
        windows = [
            Demonstration(np.array([3], np.int32), generator.integers(1, VOCABULARY, count).astype(np.int32))
            for count in LEARNED
        ]
        scalar = ScalarModel.load(model_folder, pooling="mean", pad_token_id=0, seed=0)
        labels = np.arange(len(LEARNED)) % 2
        warm_up_discriminator(
            scalar,
            windows,
            labels,
            DiscriminatorWarmup(**shared),
            pad_token_id=0,
            **common,
        )


def save_in(out: Path):
    def checkpoint(write) -> None:
        out.mkdir(exist_ok=True)
        write(out)

    return checkpoint


def rank(number: int, size: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size, is_master=False)
    dist.init_process_group("gloo", store=store, rank=number, world_size=size)
    for role in ROLES:
        save = save_in(folder / f"{role}-{size}") if number == 0 else lambda write: None
        worker = Worker(number, size, wrap=DistributedDataParallel, checkpoint=save)
        warm_up(role, folder / "model", folder, worker)
    assert worker.agreed(10 + number) == 10
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the first checkpoint of each warm-up under two workers, whose processes have ended."""
    path = tmp_path_factory.mktemp("warmups")
    build_tiny_gpt2(vocab_size=VOCABULARY, end_of_text_id=0, seed=1).save_pretrained(path / "model")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.test_warmup_group"])
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    ranks = [context.Process(target=rank, args=(number, 2, store.port, path)) for number in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(LIMIT_SECONDS)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0, 0]
    return path


@pytest.mark.parametrize("role", ROLES)
def test_two_workers_have_the_gradient_of_one(folder: Path, role: str) -> None:
    """Nine rows, five for one worker and four for the other; of 59 learned tokens one has 50."""
    alone = folder / f"{role}-1"
    warm_up(role, folder / "model", folder, Worker(checkpoint=save_in(alone)))
    single, grouped = (
        {
            name: 10 * moment.double()
            for name, moment in load_file(path / OPTIMIZER).items()
            if name.endswith(".exp_avg")
        }
        for path in (alone, folder / f"{role}-2")
    )
    assert single.keys() == grouped.keys() and single
    difference = sum(float((grouped[name] - gradient).square().sum()) for name, gradient in single.items()) ** 0.5
    size = sum(float(gradient.square().sum()) for gradient in single.values()) ** 0.5
    assert size > 0.1 and difference <= 1e-6 * max(1.0, size)
