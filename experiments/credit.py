"""The noise of a run's policy gradient: advantages from the sequence score against advantages from the reward-to-go.

    python experiments/credit.py RUN [--iterations N]

Rescores the rollouts of the run's last N iterations (default 9) with its final discriminator and prints the second
moment of the unscaled advantages. The variance of the policy gradient is proportional to it if log-probs and advantages
are independent. No bar.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from rich.console import Console
from rich.table import Table

from rlgaf_ray.config import load_config
from rlgaf_ray.data.collate import collate
from rlgaf_ray.models.tokenizer import load_tokenizer
from rlgaf_ray.objectives.baselines import (
    leave_one_out_baseline,
    other_lengths,
    past_scores,
    position_mean_baseline,
)
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import Rollout


def read_rollouts(path: Path) -> list[Rollout]:
    return [
        Rollout(
            prompt_id=row["prompt_id"],
            prompt_ids=np.array(row["prompt_ids"], np.int32),
            response_ids=np.array(row["response_ids"], np.int32),
            behaviour_logprobs=np.array(row["behaviour_logprobs"], np.float32),
            finish_reason=row["finish_reason"],
            policy_version=row["policy_version"],
        )
        for row in parquet.read_table(path).to_pylist()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--iterations", type=int, default=9)
    arguments = parser.parse_args()
    config = load_config(arguments.run / "config.yaml")
    pad = load_tokenizer(str(arguments.run / "generator")).pad_token_id
    discriminator = NeuralDiscriminator(arguments.run / "discriminator", config, pad_token_id=pad)
    group_size = config.rollout.samples_per_prompt
    moments: dict[str, list[float]] = {}
    for path in sorted((arguments.run / "rollouts").glob("*.parquet"))[-arguments.iterations :]:
        batch = collate(discriminator.score(read_rollouts(path)), pad, group_size)
        mask, scores = batch.sequences.response_mask, batch.scores
        assert batch.token_scores is not None
        returns = scores[:, None] * mask
        lengths = mask.sum(1)
        reward_to_go = returns - past_scores(batch.token_scores, mask, lengths) / other_lengths(lengths)
        estimates = {
            "sequence score, leave-one-out": returns - leave_one_out_baseline(scores, group_size=group_size)[:, None],
            "sequence score, mean at the position": returns - position_mean_baseline(returns, mask),
            "reward-to-go, mean at the position": reward_to_go - position_mean_baseline(reward_to_go, mask),
        }
        for name, advantages in estimates.items():
            moments.setdefault(name, []).append(float(advantages[mask].square().mean()))
    table = Table(title=f"advantages of {arguments.run.name}: mean of {len(next(iter(moments.values())))} iterations")
    for head in ("return, baseline", "second moment", "relative to the first"):
        table.add_column(head, justify="left" if head.startswith("return") else "right")
    first = np.mean(next(iter(moments.values())))
    for name, values in moments.items():
        table.add_row(name, f"{np.mean(values):.4f}", f"{np.mean(values) / first:.2f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
