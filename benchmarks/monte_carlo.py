"""SeqGAN's Monte Carlo search on vLLM, with and without prefix caching, against batched ``generate``.

    python benchmarks/monte_carlo.py [--prompt-tokens 16 256] [--responses 4] [--stride 1] [--rounds 3] [--threads N]

The work is that of the loop (``loop/monte_carlo.py``): every prefix of responses of 28 tokens is completed 16 times, to
28 tokens. ``generate`` gets the same prefixes with ``num_return_sequences=16``, sampling and its KV cache, at the
fastest of several batchings: prefixes of the same length together (no padding, no discarded tokens), or of several
adjacent lengths (larger batches, padded on the left, surplus tokens discarded). Each side has its own process with as
many threads as there are cores; they take turns. The model has the shape of the built-in one with 512 positions and
random weights, scaled so that its distributions are as peaked as a trained model's; speed depends on neither.

Bars on the median completions/s: 1.4 times ``generate`` at prompts of 16 tokens, 5 times at 256; the lower of the
ratios by wall time, which other processes disturb, and by CPU time.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from rlgaf_ray.actors.placement import actor_environment
from rlgaf_ray.config import Config
from rlgaf_ray.engines.seeds import rollout_seed
from rlgaf_ray.engines.transformers import TransformersEngine, pad_left
from rlgaf_ray.engines.vllm import CPU_BLOCK_TOKENS, VLLMEngine
from rlgaf_ray.loop.monte_carlo import prefixes, whole_responses
from rlgaf_ray.models.generator import FROM_SCRATCH_VOCABULARY, build_tiny_gpt2, load_generator
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import Prompt, Rollout, SamplingSettings

NUM_COMPLETIONS, RESPONSE_TOKENS, POSITIONS, END_OF_TEXT = 16, 28, 512, 0
KV_CACHE_MIB = 1024  # enough for 256 concurrent requests of the longest prompts without caching: no preemption
LENGTHS_PER_BATCH = (1, 3, 9)  # generate: the number of adjacent prefix lengths in one batch
BARS = {16: 1.4, 256: 5.0}
SIDES = ("vLLM, prefix cache", "vLLM, no prefix cache", "generate")


@dataclass
class Search:
    """One round: the completions of all prefixes, in order, and the time they took."""

    completions: list[Rollout]
    seconds: float
    cpu_seconds: float  # of all threads; other processes disturb it least
    hit_rate: float = 0.0  # share of prompt tokens served from the prefix cache


class VLLMSide:
    def __init__(self, folder: Path, threads: int, max_model_len: int, prefix_caching: bool) -> None:
        self.engine = VLLMEngine(
            folder,
            max_model_len=max_model_len,
            kv_cache_mib=KV_CACHE_MIB,
            threads=threads,
            prefix_caching=prefix_caching,
        )

    def search(self, parts: list[Prompt], turn: int) -> Search:
        engine = self.engine
        seeds = [rollout_seed(0, turn, index) for index in range(len(parts) * NUM_COMPLETIONS)]
        engine.clear_prefix_cache()  # the loop pushes new weights between two searches
        before = engine.prompt_tokens, engine.cached_prompt_tokens
        completions, seconds, cpu_seconds = timed(lambda: engine.generate(parts, sampling(), seeds=seeds))
        prompt_tokens, cached = engine.prompt_tokens - before[0], engine.cached_prompt_tokens - before[1]
        return Search(completions, seconds, cpu_seconds, cached / prompt_tokens)


class GenerateSide:
    """``transformers.generate`` with its fastest attention and batching."""

    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.models = {name: self.load(folder, name) for name in ("eager", "sdpa")}
        self.best: tuple[str, int] | None = None

    @staticmethod
    def load(folder: Path, attention: str) -> PreTrainedModel:
        model = load_generator(folder)
        model.set_attn_implementation(attention)
        return model

    def choose(self, parts: list[Prompt]) -> dict[str, float]:
        """Measure completions/s of each attention, then of each batching, and keep the fastest."""
        rates: dict[tuple[str, int], float] = {}
        for attention in self.models:
            rates[attention, LENGTHS_PER_BATCH[0]] = self.rate(parts, attention, LENGTHS_PER_BATCH[0])
        attention = max(rates, key=rates.__getitem__)[0]
        for lengths in LENGTHS_PER_BATCH[1:]:
            rates[attention, lengths] = self.rate(parts, attention, lengths)
        self.best = max(rates, key=rates.__getitem__)
        return {f"{attention}, {lengths} lengths a batch": rate for (attention, lengths), rate in rates.items()}

    def rate(self, parts: list[Prompt], attention: str, lengths: int) -> float:
        self.best = (attention, lengths)
        return len(parts) * NUM_COMPLETIONS / self.search(parts, 0).seconds

    def search(self, parts: list[Prompt], turn: int) -> Search:
        torch.manual_seed(turn)
        return Search(*timed(lambda: self.complete(parts)))

    @torch.inference_mode()
    def complete(self, parts: list[Prompt]) -> list[Rollout]:
        assert self.best is not None
        attention, lengths_a_batch = self.best
        model = self.models[attention]
        by_length: dict[int, list[int]] = {}
        for row, part in enumerate(parts):
            by_length.setdefault(len(part.token_ids), []).append(row)
        completions: list[list[Rollout]] = [[] for _ in parts]
        lengths = sorted(by_length)
        for start in range(0, len(lengths), lengths_a_batch):
            rows = [row for length in lengths[start : start + lengths_a_batch] for row in by_length[length]]
            token_ids, mask = pad_left([parts[row].token_ids for row in rows], model.device)
            budget = max(parts[row].max_new_tokens or 0 for row in rows)
            generate: Any = model.generate
            output = generate(
                input_ids=token_ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                num_return_sequences=NUM_COMPLETIONS,
                max_new_tokens=budget,
                min_new_tokens=budget,  # masks the end-of-text token, as on vLLM's side
                pad_token_id=END_OF_TEXT,
            )
            responses = output[:, token_ids.shape[1] :].to(torch.int32).numpy()
            for row, response in zip(np.repeat(rows, NUM_COMPLETIONS), responses, strict=True):
                part = parts[row]
                completions[row].append(
                    Rollout(
                        prompt_id=part.prompt_id,
                        prompt_ids=part.token_ids,
                        response_ids=response[: part.max_new_tokens],
                        behaviour_logprobs=np.zeros(part.max_new_tokens or 0, np.float32),
                        finish_reason="length",
                        policy_version=0,
                    )
                )
        return [completion for group in completions for completion in group]


def sampling(num_samples: int = NUM_COMPLETIONS) -> SamplingSettings:
    return SamplingSettings(RESPONSE_TOKENS, samples_per_prompt=num_samples, stop_at_end_of_text=False)


def timed(call: Callable[[], list[Rollout]]) -> tuple[list[Rollout], float, float]:
    start, cpu_start = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - start, time.process_time() - cpu_start


class Worker:
    """One side in its own process; two engines in one process would disturb each other's threads."""

    def __init__(self, make: type, *arguments: object) -> None:
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self.pool.submit(_start, make, arguments).result()

    def call(self, method: str, *arguments: object) -> Any:
        return self.pool.submit(_call, method, arguments).result()


_side: Any = None  # the side of this worker process


def _start(make: type, arguments: tuple[object, ...]) -> None:
    global _side
    _side = make(*arguments)


def _call(method: str, arguments: tuple[object, ...]) -> Any:
    return getattr(_side, method)(*arguments)


def build_model(folder: Path) -> None:
    model = build_tiny_gpt2(
        vocab_size=FROM_SCRATCH_VOCABULARY, end_of_text_id=END_OF_TEXT, seed=0, num_positions=POSITIONS
    )
    with torch.no_grad():
        model.transformer.wte.weight.mul_(2)
    model.save_pretrained(folder)


def responses_to(folder: Path, num_responses: int, prompt_tokens: int) -> list[Rollout]:
    rng = np.random.default_rng(prompt_tokens)
    prompts = [
        Prompt(row, rng.integers(1, FROM_SCRATCH_VOCABULARY, prompt_tokens).astype(np.int32))
        for row in range(num_responses)
    ]
    return TransformersEngine(folder).generate(prompts, sampling(1), seeds=list(range(num_responses)))


def action_values(folder: Path, rollouts: list[Rollout], searches: list[Search]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean reward of each prefix's completions over all rounds and its standard error: [prefixes] each."""
    discriminator = NeuralDiscriminator(folder, Config(), pad_token_id=END_OF_TEXT)
    rewards = np.concatenate(
        [
            np.reshape(
                [item.score for item in discriminator.score(whole_responses(rollouts, search.completions))],
                (-1, NUM_COMPLETIONS),
            )
            for search in searches
        ],
        axis=1,
    )
    return rewards.mean(1), rewards.std(1, ddof=1) / math.sqrt(rewards.shape[1])


def measure(folder: Path, prompt_tokens: int, arguments: argparse.Namespace, console: Console) -> bool:
    """Print the table of one prompt length; returns whether its bar is met."""
    rollouts = responses_to(folder, arguments.responses, prompt_tokens)
    parts = prefixes(rollouts, stride=arguments.stride, max_response_tokens=RESPONSE_TOKENS)
    max_model_len = prompt_tokens + RESPONSE_TOKENS
    workers = {
        SIDES[0]: Worker(VLLMSide, folder, arguments.threads, max_model_len, True),
        SIDES[1]: Worker(VLLMSide, folder, arguments.threads, max_model_len, False),
        SIDES[2]: Worker(GenerateSide, folder, arguments.threads),
    }
    choices = workers[SIDES[2]].call("choose", parts)
    for side in SIDES[:2]:
        workers[side].call("search", parts, 0)  # first calls allocate and compile
    rounds: dict[str, list[Search]] = {side: [] for side in SIDES}
    for turn in range(1, 1 + arguments.rounds):
        for side in SIDES if turn % 2 else reversed(SIDES):
            rounds[side].append(workers[side].call("search", parts, turn))
    for worker in workers.values():
        worker.pool.shutdown()

    num_completions = len(parts) * NUM_COMPLETIONS
    values = {side: action_values(folder, rollouts, rounds[side]) for side in SIDES}
    table = Table(
        title=f"prompts of {prompt_tokens} tokens, {arguments.responses} responses, {len(parts)} prefixes x "
        f"{NUM_COMPLETIONS} completions, {arguments.threads} threads: median of {arguments.rounds} (min to max)"
    )
    for head in ("", "completions/s", "of generate", "by CPU time", "cache hits", "mean reward (standard error)"):
        table.add_column(head, justify="right" if head else "left")
    for side in SIDES:
        rates = [num_completions / search.seconds for search in rounds[side]]
        mean, error = values[side]
        table.add_row(
            side,
            f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})",
            f"{times_generate(rounds, side, 'seconds'):.2f}",
            f"{times_generate(rounds, side, 'cpu_seconds'):.2f}",
            f"{statistics.mean(search.hit_rate for search in rounds[side]):.1%}",
            f"{mean.mean():+.5f} ({np.sqrt((error**2).sum()) / len(parts):.5f})",
        )
    console.print(table)
    console.print(f"vLLM's blocks: {CPU_BLOCK_TOKENS} tokens; generate, completions/s by batch: {choices}")
    equal = True
    for side in SIDES[:2]:
        difference = values[side][0] - values[SIDES[2]][0]
        error = np.hypot(values[side][1], values[SIDES[2]][1])
        total = difference.mean() / (np.sqrt((error**2).sum()) / len(parts))
        # A standard error over S rounds has NUM_COMPLETIONS * S - 1 degrees of freedom: squares average a bit over 1.
        squares = (difference / error) ** 2
        limit = 1 + 4 * math.sqrt(2 / len(parts)) + 2 / (NUM_COMPLETIONS * arguments.rounds)
        equal &= bool(abs(total) < 4 and squares.mean() < limit)
        console.print(
            f"{side} minus generate: mean reward {difference.mean():+.5f}, {total:+.2f} standard errors; "
            f"per prefix, mean squared {squares.mean():.2f} (expected 1, limit {limit:.2f})"
        )
    bar = BARS.get(prompt_tokens)
    ratio = min(times_generate(rounds, SIDES[0], clock) for clock in ("seconds", "cpu_seconds"))
    if bar is not None:
        console.print(f"with the cache {ratio:.2f} times generate, bar {bar}: {'met' if ratio >= bar else 'missed'}")
    return equal and (bar is None or ratio >= bar)


def times_generate(rounds: dict[str, list[Search]], side: str, clock: str) -> float:
    """Return the ratio of a side's median rate to that of ``generate``."""
    baseline, own = (statistics.median(getattr(search, clock) for search in rounds[name]) for name in (SIDES[2], side))
    return baseline / own


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=list(BARS))
    parser.add_argument("--responses", type=int, default=4)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    os.environ.update(actor_environment(arguments.threads))  # inherited by the processes of the sides
    disable_progress_bar()
    set_verbosity_error()  # no warning about the scorer's newly initialized head
    with TemporaryDirectory() as folder:
        build_model(Path(folder))
        met = [measure(Path(folder), tokens, arguments, Console(width=160)) for tokens in arguments.prompt_tokens]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
