"""Peak memory of one learner step with GPT-2's vocabulary: all logits at once against chunks of positions.

    python benchmarks/learner_memory.py

Each side runs in its own process: a small transformer with GPT-2's 50,257 tokens, 64 responses of 28 tokens, REINFORCE
with the exact KL. The figure is the peak of the step above the memory before it. Bar: 0.6 of the naive side, with the
same gradient (to 1e-5 of its norm). Chunking costs a second product with the vocabulary, here most of the step.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

from rlgaf_ray.config import load_config
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.training.memory import release_freed_memory
from rlgaf_ray.types import Rollout, ScoredRollout

VOCABULARY, ROWS, PROMPT, RESPONSE = 50_257, 64, 3, 28
SIDES = {"naive": [], "256 positions at a time": ["learner.logprob_chunk_tokens=256"]}
STEPS = 4
BAR, TOLERANCE = 0.6, 1e-5


def side(folder: Path, overrides: list[str]) -> dict[str, object]:
    """Measure one side; runs in its own process."""
    settings = [f"rollout.batch_size={ROWS}", "rollout.samples_per_prompt=1", "learner.precision=float32"]
    settings.append("generator.average_decay=0")
    learner = Learner(folder, load_config(None, [*settings, *overrides]), pad_token_id=0)
    numbers = np.random.default_rng(0)
    scored = []
    for row in range(ROWS):
        tokens = numbers.integers(1, VOCABULARY - 1, PROMPT + RESPONSE).astype(np.int32)
        behaviour = np.full(RESPONSE, -10.8, np.float32)
        rollout = Rollout(row, tokens[:PROMPT], tokens[PROMPT:], behaviour, "length", 0)
        parts = numbers.normal(size=RESPONSE).astype(np.float32)
        scored.append(ScoredRollout(rollout, float(parts.sum()), 0, float(parts.sum()), parts))
    release_freed_memory()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    seconds = []
    for step in range(STEPS):
        start = time.process_time()
        metrics = learner.update(scored, iteration=step)
        seconds.append(time.process_time() - start)
        if step == 0:
            norm = metrics["generator/grad_norm"]
            # Adam's first step only has the gradient's sign; its first moment holds the scaled gradient.
            moments = [state["exp_avg"].flatten()[:20_000] for state in learner.policy.optimizer.state.values()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "step": peak - before,
        "process": peak,
        "seconds": statistics.median(seconds[1:]),
        "norm": norm,
        "gradient": torch.cat(moments).tolist(),
    }


def main() -> int:
    if len(sys.argv) > 1:
        print(json.dumps(side(Path(sys.argv[1]), sys.argv[2:])))
        return 0
    found = {}
    with TemporaryDirectory() as folder:
        GPT2LMHeadModel(GPT2Config(n_embd=192, n_layer=4, n_head=3, n_positions=64)).save_pretrained(folder)
        for name, overrides in SIDES.items():
            process = subprocess.run(
                [sys.executable, __file__, folder, *overrides], check=True, stdout=subprocess.PIPE, text=True
            )
            found[name] = json.loads(process.stdout.splitlines()[-1])
    table = Table(title=f"One step on {ROWS} x {RESPONSE} tokens, vocabulary {VOCABULARY:,}")
    for column in ("side", "step's own peak, MB", "whole process, MB", "CPU seconds per step"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for name, row in found.items():
        table.add_row(name, f"{row['step'] / 1e6:.0f}", f"{row['process'] / 1e6:.0f}", f"{row['seconds']:.2f}")
    console = Console()
    console.print(table)
    naive, chunked = found.values()
    ratio = chunked["step"] / naive["step"]
    first, second = np.array(naive["gradient"]), np.array(chunked["gradient"])
    difference = float(np.linalg.norm(first - second) / np.linalg.norm(first))
    met = ratio <= BAR and difference <= TOLERANCE
    console.print(
        f"peak {ratio:.2f} of the naive side (bar {BAR}), gradients differ by {difference:.1e} of their norm "
        f"(bar {TOLERANCE:.0e}): {'met' if met else 'missed'}"
    )
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
