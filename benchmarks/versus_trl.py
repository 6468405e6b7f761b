"""rlgaf_ray against TRL's GRPOTrainer with the same model, prompts, rollouts of 64 x 28 tokens, KL and dtype.

    pip install -e ".[cpu,bench]" && python benchmarks/versus_trl.py [key=value ...]

TRL samples with ``generate`` and scores with a frozen discriminator. rlgaf_ray samples with vLLM, scores with the same
network, and also trains it every five iterations. Both use TRL's KL: k3 on the sampled tokens, as a term of the loss.
TRL runs in its own process with as many threads as there are cores, as usual. The two take turns for five rounds in one
call; medians. Bar: 1.5 times TRL's samples/s.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import ray
import torch
from common import Bench, bench, spread
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rlgaf_ray.actors.cluster import cluster_resources
from rlgaf_ray.models.generator import load_generator
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.training.precision import resolve_precision
from rlgaf_ray.types import Rollout

ROUNDS, ITERATIONS, UNTIMED, BAR = 5, 15, 3, 1.5
SAME_KL = [f"generator.reinforce.kl.{setting}" for setting in ("estimator=k3", "placement=loss", "coefficient=0.05")]


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        self.marks.append(time.perf_counter())


def trl_seconds(setup: Bench, folder: Path) -> float:
    """Return the mean seconds of one optimizer step of GRPOTrainer."""
    config, tokenizer = setup.config, setup.data.tokenizer
    discriminator = NeuralDiscriminator(setup.warmups.discriminator, config, pad_token_id=tokenizer.pad_token_id)

    def score(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **kwargs: object
    ) -> list[float | None]:
        rollouts = [
            Rollout(
                prompt_id=0,
                prompt_ids=np.array(tokenizer(prompt)["input_ids"], np.int32),
                response_ids=np.array(ids, np.int32),
                behaviour_logprobs=np.zeros(len(ids), np.float32),
                finish_reason="length",
                policy_version=0,
            )
            for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]
        return [item.score for item in discriminator.score(rollouts)]

    prompts = [tokenizer.decode(item.prompt_ids) for item in setup.data.task.demonstrations]
    tokens = config.task.response_tokens
    clock = Clock()
    trainer = GRPOTrainer(
        model=load_generator(setup.warmups.generator),
        reward_funcs=score,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        callbacks=[clock],
        args=GRPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=resolve_precision(config.learner.precision, torch.device("cpu")) == torch.bfloat16,
            per_device_train_batch_size=config.rollout.batch_size,
            num_generations=config.rollout.samples_per_prompt,
            max_completion_length=tokens,
            generation_kwargs={"min_new_tokens": tokens},
            temperature=config.rollout.temperature,
            beta=config.generator.reinforce.kl.coefficient,
            learning_rate=config.generator.learning_rate,
            max_steps=ITERATIONS + UNTIMED,
            gradient_checkpointing=False,
            logging_steps=1000,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
    )
    trainer.train()
    return (clock.marks[-1] - clock.marks[UNTIMED - 1]) / ITERATIONS


class Trl:
    """TRL in its own process."""

    def __init__(self, setup: Bench) -> None:
        self.setup = setup

    def seconds(self, turn: int) -> float:
        return trl_seconds(self.setup, self.setup.folder / f"trl{turn}")


def main() -> int:
    console = Console()
    with bench(*SAME_KL, *sys.argv[1:]) as setup:
        environment = {"env_vars": {"OMP_NUM_THREADS": str(cluster_resources()[2]), "HF_HUB_OFFLINE": "1"}}
        actor: Any = ray.remote(Trl)
        trl = actor.options(num_cpus=0, runtime_env=environment).remote(setup)
        loop = setup.loop(setup.ray_roles(), "ours")
        for _ in range(5):
            loop.train_step()
        ours: list[float] = []
        theirs: list[float] = []
        for turn in range(ROUNDS):
            theirs.append(ray.get(trl.seconds.remote(turn)))
            ours.append(statistics.mean(loop.train_step()["time/iteration"] for _ in range(ITERATIONS)))
        batch_size, tokens = setup.config.rollout.batch_size, setup.config.task.response_tokens
    ratio = statistics.median(theirs) / statistics.median(ours)
    table = Table(title=f"{batch_size} x {tokens} tokens: median of {ROUNDS} rounds x {ITERATIONS} steps (min to max)")
    for head in ("", "seconds per step", "samples/s"):
        table.add_column(head, justify="right" if head else "left")
    for name, values in (
        ("TRL GRPOTrainer, frozen scorer", theirs),
        ("rlgaf_ray, discriminator trained every 5", ours),
    ):
        table.add_row(name, spread(values), spread([batch_size / value for value in values], "{:.0f}"))
    table.add_row(f"ratio (bar: {BAR})", "", f"{ratio:.2f}")
    console.print(table)
    return 0 if ratio >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
