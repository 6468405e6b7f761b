"""Groups of processes (gloo) against one process: gradients, loss curves, scores, and checkpoints between them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore
from transformers import GPT2Config, GPT2LMHeadModel

from tests.integration.group_run import VOCABULARY, Job, alone, rank

Found = dict[str, np.ndarray]
Launch = Callable[[int, Sequence[Job]], None]

GSPO = tuple(
    f"generator.reinforce.{key}"
    for key in (
        "credit=sequence",
        "clip_range=3e-4",
        "clip_range_high=4e-4",
        "ratio=sequence",
        "loss_average=sequence",
        "minibatches=2",
    )
)
BASED = ("warmup.sft.steps=1", "generator.reinforce.kl.reference=base", "reward.base_logprob=0.1")
VIEWED = ("discriminator.view=last_tokens", "discriminator.view_tokens=3", "generator.reinforce.credit=sequence")
CHUNKED = ("learner.logprob_chunk_tokens=5", "learner.activation_checkpointing=true")
BUCKETED = ("learner.micro_batch_tokens=24",)
POSITIVE_UNLABELLED = ("discriminator.loss=positive_unlabelled", "discriminator.positive_share=0.99")
EXACT = [
    Job("reinforce", strategy="ddp", overrides=BUCKETED, exact=True),
    Job("reinforce-fsdp", strategy="fsdp", overrides=("learner.micro_batch_size=4", *CHUNKED), exact=True),
    Job("masked-fsdp", strategy="fsdp", overrides=("rollout.stop_at_end_of_text=false",), exact=True),
    Job("discriminator", "discriminator", strategy="ddp", overrides=BUCKETED, exact=True),
    Job("discriminator-fsdp", "discriminator", strategy="fsdp", exact=True),
    Job("positive-unlabelled", "discriminator", strategy="ddp", overrides=POSITIVE_UNLABELLED, exact=True),
]
CURVES = [
    Job("curve", strategy="ddp", overrides=("generator.learning_rate=1e-3",), steps=10),
    Job("curve-fsdp", strategy="fsdp", overrides=("generator.learning_rate=1e-3",), steps=10, save=True),
    Job("judge", "discriminator", strategy="ddp", steps=10, save=True),
    Job("judge-fsdp", "discriminator", strategy="fsdp", steps=10),
]
MOVED = [
    Job("moved", strategy="ddp", overrides=("generator.learning_rate=1e-3",), load="curve-fsdp", start=10, steps=2),
    Job("moved-judge", "discriminator", strategy="fsdp", load="judge", start=10, steps=2),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("groups")
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(path / "model")
        GPT2LMHeadModel(config).save_pretrained(path / "base")  # other draws: as if an SFT lay between
    return path


@pytest.fixture(scope="module")
def launch(folder: Path) -> Launch:
    """Processes forked from one that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.group_run"])

    def start(size: int, jobs: Sequence[Job]) -> None:
        store = TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
        ranks = [
            context.Process(target=rank, args=(number, size, store.port, list(jobs), folder)) for number in range(size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        codes = [process.exitcode for process in ranks]
        for process in ranks:
            process.kill()
        assert codes == [0] * size

    return start


def of_group(folder: Path, job: Job, size: int) -> Found:
    with np.load(folder / f"{job.name}-{size}.npz") as found:
        return dict(found)


def gradients(found: Found) -> Found:
    """What plain gradient descent with rate 1 took away, or that times the rate."""
    return {
        name.removeprefix("before "): value - found[name.replace("before", "after", 1)]
        for name, value in found.items()
        if name.startswith("before ")
    }


def check_gradients(grouped: Found, single: Found) -> None:
    ours, theirs = gradients(grouped), gradients(single)
    assert ours.keys() == theirs.keys() and ours
    total = np.sqrt(sum(np.square(value).sum() for value in theirs.values()))
    assert total > 0
    for name, value in theirs.items():
        size = np.linalg.norm(value)
        # Of a key's bias the true gradient is zero: rounding is held against the whole.
        assert np.linalg.norm(ours[name] - value) <= 1e-8 * (size if size > 1e-9 * total else total), name


def check_role(grouped: Found, single: Found, tolerance: float) -> None:
    """What the group says besides: its metrics, scores, likelihoods, and the weights that it pushes."""
    for name in ("metrics", "losses", "nll", "scores"):
        if name in single:
            np.testing.assert_allclose(grouped[name], single[name], rtol=tolerance, atol=tolerance, err_msg=name)
    pushed = {name: value for name, value in grouped.items() if name.startswith("pushed ")}
    for name, value in pushed.items():
        np.testing.assert_array_equal(value, grouped[name.replace("pushed", "after", 1)])
    assert pushed.keys() == {name for name in single if name.startswith("pushed ")}


def test_two_workers_do_what_one_does(folder: Path, launch: Launch) -> None:
    """Gradients to 1e-8 in float64, ten steps to 1e-3 in float32, checkpoints from one strategy to the other."""
    launch(2, [*EXACT, *CURVES, *MOVED])
    for job in EXACT:
        single = alone(job, folder)
        grouped = of_group(folder, job, 2)
        check_gradients(grouped, single)
        check_role(grouped, single, 1e-5)
    for first, second in (("curve", "curve-fsdp"), ("judge", "judge-fsdp")):
        jobs = {job.name: job for job in CURVES}
        single = alone(jobs[first], folder)
        assert single["losses"][-1] < single["losses"][0]
        for name in (first, second):
            check_role(of_group(folder, jobs[name], 2), single, 1e-3)
    for job in MOVED:  # from FSDP to DDP, from DDP to FSDP, and to one process
        check_role(of_group(folder, job, 2), alone(job, folder), 1e-3)


MORE = [
    Job("estimated", overrides=("generator.reinforce.kl.estimator=k1", "generator.reinforce.kl.placement=reward")),
    Job("grpo", overrides=("generator.reinforce.credit=sequence", "generator.reinforce.baseline=leave_one_out")),
    Job("averaged", overrides=("generator.reinforce.loss_average=sequence", "generator.importance_weight_cap=2")),
    Job("summed", overrides=("generator.reinforce.loss_average=constant", "generator.reinforce.clip_range=0.2")),
    Job("gspo", overrides=GSPO),
    Job("based", overrides=(*BASED, "learner.logprob_chunk_tokens=5")),
    Job("ppo", overrides=("generator.algorithm=ppo", "generator.ppo.pretraining_coefficient=0.5")),
    Job("seqgan", overrides=("generator.algorithm=seqgan",)),
    Job("viewed", "discriminator", overrides=VIEWED),
    Job("pairs", "discriminator", overrides=("discriminator.loss=bradley_terry",)),
    Job("choices", "discriminator", overrides=("discriminator.loss=contrastive",)),
    Job("bounded", "discriminator", overrides=("discriminator.frozen_layers=1",)),
]


PASSES: dict[Literal["ddp", "fsdp"], tuple[str, ...]] = {"ddp": BUCKETED, "fsdp": ("learner.micro_batch_size=2",)}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_objective_has_the_gradient_of_one_worker(folder: Path, launch: Launch, size: int) -> None:
    """Four ranks share twelve sequences of many lengths in passes of two, so that some ranks run out of rows."""
    jobs = [
        replace(job, name=f"{job.name}-{strategy}", strategy=strategy, exact=True, overrides=(*job.overrides, *passes))
        for job in MORE
        for strategy, passes in PASSES.items()
    ]
    launch(size, jobs)
    for job in jobs:
        check_gradients(of_group(folder, job, size), alone(job, folder))


@pytest.mark.slow
def test_a_checkpoint_moves_between_sizes_and_strategies(folder: Path, launch: Launch) -> None:
    """One, two, four workers and back to one, each two steps of PPO with its critic; against eight steps without."""
    overrides = ("generator.algorithm=ppo", "generator.learning_rate=1e-3", "generator.average_decay=0.9")
    step = Job("start", overrides=overrides, steps=2, save=True)
    launch(1, [step])
    travels: list[tuple[int, Literal["ddp", "fsdp"]]] = [(2, "fsdp"), (4, "ddp"), (4, "fsdp"), (2, "ddp")]
    previous = step
    for number, (size, strategy) in enumerate(travels):
        job = replace(step, name=f"stop-{number}", strategy=strategy, load=previous.name, start=2 + 2 * number)
        launch(size, [job])
        previous = job
    last = replace(step, name="end", load=previous.name, start=10)
    found = alone(last, folder)
    whole = alone(replace(step, name="whole", steps=12), folder)
    np.testing.assert_allclose(found["losses"], whole["losses"][-2:], atol=1e-3)
    for name, value in whole.items():
        if name.startswith("after "):
            np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)
