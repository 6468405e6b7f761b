"""Learner tokens/s on responses of mixed length: batching by length against plain padding.

    python benchmarks/padding.py [--squad train-v1.1.json.gz]

The responses are SQuAD's answers to their questions, with and without the paragraph, tokenized by a BPE of the built-in
model's size. A learner with plain padding and one with ``learner.micro_batch_tokens`` take turns on the same batch of
REINFORCE, with defaults otherwise. Padding tokens are not counted. Bar: 1.5 times the tokens/s (median of the rounds,
by wall time and by CPU time), and losses equal to 1e-5.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from rlgaf_ray.config import load_config
from rlgaf_ray.data.collate import num_tokens
from rlgaf_ray.data.squad import Question, load_squad
from rlgaf_ray.models.generator import FROM_SCRATCH_VOCABULARY, build_tiny_gpt2
from rlgaf_ray.models.tokenizer import train_bpe
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.types import Rollout, ScoredRollout

SQUAD = Path(__file__).parents[2] / "shared" / "data" / "squad" / "train-v1.1.json.gz"
BATCH, MICRO_BATCH, BUDGET, MAX_TOKENS = 128, 64, 2048, 256
ROUNDS = 5
BAR, TOLERANCE = 1.5, 1e-5


def scored_answers(
    questions: list[Question], encode: Callable[[str], list[int]], *, context: bool
) -> list[ScoredRollout]:
    """Turn SQuAD's answers into scored rollouts; prompts are truncated on the left to fit the model."""
    numbers = np.random.default_rng(0)
    scored = []
    for row, question in enumerate(questions):
        response = np.array(encode(" " + question.answers[0]), np.int32)
        asked = f"{question.context}\n{question.question}" if context else question.question
        prompt = np.array(encode(asked), np.int32)
        rollout = Rollout(
            prompt_id=row,
            prompt_ids=prompt[-(MAX_TOKENS - len(response)) :],
            response_ids=response,
            behaviour_logprobs=numbers.normal(-4.0, 1.0, len(response)).astype(np.float32),
            finish_reason="stop",
            policy_version=0,
        )
        parts = numbers.normal(size=len(response)).astype(np.float32)
        scored.append(ScoredRollout(rollout, float(parts.sum()), 0, float(parts.sum()), parts))
    return scored


def measure(folder: Path, scored: list[ScoredRollout]) -> tuple[dict[str, list[tuple[float, float]]], float]:
    """Return each side's (wall, CPU) seconds per update, and the difference of their first losses."""
    shared = [f"rollout.batch_size={BATCH}", "rollout.samples_per_prompt=1", f"learner.micro_batch_size={MICRO_BATCH}"]
    shared.append("generator.average_decay=0")
    sides = {"plain padding": [], "batched by length": [f"learner.micro_batch_tokens={BUDGET}"]}
    learners = {
        name: Learner(folder, load_config(None, [*shared, "learner.precision=float32", *more]), pad_token_id=0)
        for name, more in sides.items()
    }
    losses = [learner.update(scored, iteration=0)["generator/loss"] for learner in learners.values()]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in learners}
    for _ in range(ROUNDS):
        for name, learner in learners.items():
            clock, cpu = time.perf_counter(), time.process_time()
            learner.update(scored, iteration=1)
            times[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    return times, abs(losses[0] - losses[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squad", type=Path, default=SQUAD)
    squad = parser.parse_args().squad
    disable_progress_bar()
    console = Console()
    if not squad.is_file():
        console.print(f"skipped: {squad} does not exist; pass an official SQuAD file with --squad")
        return 0
    questions = load_squad(squad)
    texts = [text for question in questions[:4000] for text in (question.question, question.answers[0])]
    bpe = train_bpe([*texts, *{question.context for question in questions[:4000]}], FROM_SCRATCH_VOCABULARY)
    chosen = [questions[row] for row in np.random.default_rng(1).choice(len(questions), BATCH, replace=False)]
    table = Table(title=f"{BATCH} answers per update, float32, {torch.get_num_threads()} threads, {ROUNDS} rounds")
    for column in ("prompts", "tokens: mean, longest", "side", "tokens/s, median (range)", "by CPU time"):
        table.add_column(column)
    missed = False
    with TemporaryDirectory() as folder:
        model = build_tiny_gpt2(vocab_size=bpe.get_vocab_size(), end_of_text_id=0, seed=0)
        model.save_pretrained(folder)
        for name, context in (("questions", False), ("paragraphs and questions", True)):
            scored = scored_answers(chosen, lambda text: bpe.encode(text).ids, context=context)
            lengths = [num_tokens(item.rollout) for item in scored]
            times, difference = measure(Path(folder), scored)
            for side, rounds in times.items():
                clock, cpu = ([sum(lengths) / seconds for seconds in column] for column in zip(*rounds, strict=True))
                table.add_row(
                    name,
                    f"{np.mean(lengths):.0f}, {max(lengths)}",
                    side,
                    f"{statistics.median(clock):,.0f} ({min(clock):,.0f} to {max(clock):,.0f})",
                    f"{statistics.median(cpu):,.0f}",
                )
            plain, bucketed = times.values()
            by_clock, by_cpu = (
                statistics.median(row[which] for row in plain) / statistics.median(row[which] for row in bucketed)
                for which in (0, 1)
            )
            met = min(by_clock, by_cpu) >= BAR and difference <= TOLERANCE
            missed |= not met
            console.print(
                f"{name}: {by_clock:.2f} times by wall time, {by_cpu:.2f} by CPU time (bar {BAR}), losses differ by "
                f"{difference:.1e} (bar {TOLERANCE:.0e}): {'met' if met else 'missed'}"
            )
    console.print(table)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
