"""Gumbel-softmax: seconds and peak memory of an update in both modes, and the cosine between their gradients.

    python benchmarks/gumbel.py [key=value ...]

``autoregressive`` has the full gradient. ``conditional`` drops each token's influence on later ones. Its cosine to the
full gradient is computed per draw, with the same prompts, tokens and noise, and between expected gradients, estimated
by averages over independent draws. Averages over few draws are noisy, which lowers the cosine: the corrected cosine
divides the inner product across the modes, from different halves of the draws, by that within each mode. All gradients
are those of the adversarial loss, without the KL. The cosine depends on the warm-up, speed and memory hardly do: use
``warmup.discriminator.steps=60`` for the cosine at the start of a run.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Bench, bench, seconds, spread
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import softplus

from rlgaf_ray.config import Config
from rlgaf_ray.data.collate import collate
from rlgaf_ray.engines.seeds import rollout_seed
from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.models.straight_through import AlignedBatch, align, response_logits, sample_straight_through, soft_logits
from rlgaf_ray.objectives.gumbel import conditional_gumbel_perturbed, gumbel_perturbed, straight_through_embeddings
from rlgaf_ray.training.gumbel import GumbelSoftmax
from rlgaf_ray.training.learner import Learner
from rlgaf_ray.training.neural_discriminator import NeuralDiscriminator
from rlgaf_ray.types import Prompt, SamplingSettings, ScoredRollout

MODES = ("autoregressive", "conditional")
ROUNDS, DRAWS, TEMPERATURES = 5, 16, (1.0, 0.5)
MEBIBYTE = 2**20


def learner_of(config: Config, folders: tuple[Path, Path], mode: str, pad: int, device: str) -> Learner:
    gumbel = config.generator.gumbel.model_copy(update={"mode": mode})
    generator = config.generator.model_copy(update={"algorithm": "gumbel", "gumbel": gumbel})
    learner = Learner(folders[0], config.model_copy(update={"generator": generator}), pad_token_id=pad, device=device)
    update = NeuralDiscriminator(folders[1], config, pad_token_id=pad).weights()
    assert update is not None
    learner.load_discriminator(update)
    return learner


def rollouts_of(setup: Bench, pad: int) -> list[ScoredRollout]:
    """Sample and score the rollouts of one iteration."""
    settings = setup.config.rollout
    count = settings.prompts_per_iteration
    prompts = [Prompt(row, item.prompt_ids) for row, item in enumerate(setup.data.task.demonstrations[:count])]
    sampling = SamplingSettings(
        setup.config.task.response_tokens, samples_per_prompt=settings.samples_per_prompt, stop_at_end_of_text=False
    )
    seeds = [rollout_seed(0, 1, index) for index in range(settings.batch_size)]
    rollouts = TransformersEngine(setup.warmups.generator).generate(prompts, sampling, seeds=seeds)
    discriminator = NeuralDiscriminator(setup.warmups.discriminator, setup.config, pad_token_id=pad)
    return [replace(item, reward=item.score) for item in discriminator.score(rollouts)]


def peak_bytes(
    config: Config, folders: tuple[Path, Path], mode: str, pad: int, device: str, scored: list[ScoredRollout]
) -> int:
    """Return the bytes that two updates need beyond the loaded models (gradients, moments, graph).

    It must run in a fresh process.
    """
    learner = learner_of(config, folders, mode, pad, device)
    clear_peak(device)
    before = peak(device)
    for iteration in range(2):
        learner.update(scored, iteration=iteration)
    return peak(device) - before


def clear_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:  # getrusage's peak cannot be reset, and a child process inherits its parent's
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> int:
    """Return the peak bytes: of tensors on a GPU, of the whole process on CPU (Linux)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measured_peak(*arguments: Any) -> int:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as fresh:
        return fresh.submit(peak_bytes, *arguments).result()


class Gradients:
    """Flat gradients of the adversarial loss w.r.t. the policy's weights, at one relaxation temperature."""

    def __init__(self, learner: Learner, batch: AlignedBatch, temperature: float) -> None:
        assert isinstance(learner.algorithm, GumbelSoftmax)
        self.policy, self.discriminator = learner.policy, learner.algorithm.discriminator
        self.batch, self.temperature = batch, temperature
        self.num_tokens = learner.config.task.response_tokens
        self.masked = self.policy.masked_token_ids

    def noise(self, draw: int, *, fresh: bool = False) -> list[torch.Generator]:
        device = self.batch.prompt_ids.device
        rows = range(len(self.batch.prompt_ids))
        return [torch.Generator(device).manual_seed(rollout_seed(1 + fresh, draw, row)) for row in rows]

    def full(self, draw: int) -> tuple[AlignedBatch, Tensor]:
        sampled, read = sample_straight_through(
            self.policy.model,
            self.batch,
            self.discriminator.embedding,
            num_tokens=self.num_tokens,
            relaxation_temperature=self.temperature,
            masked_token_ids=self.masked,
            generator=self.noise(draw),
        )
        return sampled, self.flat(sampled, read)

    def conditional(self, sampled: AlignedBatch, draw: int, *, matched: bool) -> Tensor:
        """Return the conditional gradient at the tokens of a full draw.

        ``matched`` uses the noise that sampled the tokens, otherwise new noise conditioned on them.
        """
        logits = response_logits(self.policy.model, sampled, temperature=1.0, masked_token_ids=self.masked)
        if matched:
            sources = self.noise(draw)
            steps = [gumbel_perturbed(logits[:, step], generator=sources) for step in range(logits.shape[1])]
            perturbed = torch.stack(steps, 1)
        else:
            noise = self.noise(draw, fresh=True)
            perturbed = conditional_gumbel_perturbed(logits, sampled.response_ids, generator=noise)
        tokens, (read,) = straight_through_embeddings(
            perturbed, [self.discriminator.embedding], temperature=self.temperature
        )
        # The noise must reproduce the tokens, except for ties within rounding.
        assert float((tokens == sampled.response_ids).float().mean()) > 0.999
        return self.flat(sampled, read)

    def flat(self, sampled: AlignedBatch, read: Tensor) -> Tensor:
        loss = softplus(-soft_logits(self.discriminator, sampled, read)).mean()
        found = torch.autograd.grad(loss, list(self.policy.model.parameters()))
        return torch.cat([gradient.flatten() for gradient in found])


def cosine(left: Tensor, right: Tensor) -> float:
    return float(left @ right / (left.norm() * right.norm()))


def cosines(gradients: Gradients) -> tuple[list[float], float, float]:
    """Return the cosines of matched draws, the cosine of the averages, and the latter corrected for noise."""
    matched: list[float] = []
    halves = [[torch.zeros(()), torch.zeros(())] for _ in MODES]
    for draw in range(DRAWS):
        sampled, full = gradients.full(draw)
        matched.append(cosine(full, gradients.conditional(sampled, draw, matched=True)))
        given = gradients.conditional(sampled, draw, matched=False)
        for sums, gradient in zip(halves, (full, given), strict=True):
            sums[draw % 2] = sums[draw % 2] + gradient / (DRAWS / 2)
    (full_a, full_b), (given_a, given_b) = halves
    raw = cosine(full_a + full_b, given_a + given_b)
    across = float(full_a @ given_b + full_b @ given_a) / 2
    within = float(full_a @ full_b) * float(given_a @ given_b)
    return matched, raw, across / within**0.5 if within > 0 else float("nan")


def main() -> int:
    console = Console()
    with bench(*sys.argv[1:]) as setup:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        pad = setup.data.tokenizer.pad_token_id
        folders = (setup.warmups.generator, setup.warmups.discriminator)
        scored = rollouts_of(setup, pad)
        config = setup.config

        learners = {mode: learner_of(config, folders, mode, pad, device) for mode in MODES}
        times: dict[str, list[float]] = {mode: [] for mode in MODES}
        for turn in range(ROUNDS + 1):
            for mode, learner in learners.items():
                taken = seconds(partial(learner.update, scored, iteration=turn))
                if turn:  # the first turn allocates memory
                    times[mode].append(taken)
        sizes = sorted({config.learner.micro_batch_size, 16}, reverse=True)
        sized = {
            size: config.model_copy(update={"learner": config.learner.model_copy(update={"micro_batch_size": size})})
            for size in sizes
        }
        peaks = {
            (mode, size): measured_peak(sized[size], folders, mode, pad, device, scored)
            for mode in MODES
            for size in sizes
        }

        learner = learner_of(config, folders, "autoregressive", pad, device)  # with the warmed-up weights
        batch = align(collate(scored, pad, config.rollout.samples_per_prompt).to(torch.device(device)).sequences)
        found = {temperature: cosines(Gradients(learner, batch, temperature)) for temperature in TEMPERATURES}

    vocabulary = learner.policy.model.config.get_text_config().vocab_size
    tokens = config.task.response_tokens
    table = Table(title=f"one update of {len(scored)} rows x {tokens} tokens, vocabulary {vocabulary:,}, {device}")
    for column in ("", *MODES):
        table.add_column(column, justify="right" if column else "left")
    table.add_row(f"seconds, median of {ROUNDS} (min to max)", *(spread(times[mode]) for mode in MODES))
    for size in sizes:
        unit = 4 * size * tokens * vocabulary / MEBIBYTE
        table.add_row(
            f"peak memory, MiB, micro-batch {size} (b x R x V float32: {unit:.0f})",
            *(f"{peaks[mode, size] / MEBIBYTE:.0f}" for mode in MODES),
        )
    for temperature, (matched, raw, corrected) in found.items():
        deviation = statistics.stdev(matched)
        table.add_row(
            f"temperature {temperature}: cosine, same noise", "1", f"{statistics.mean(matched):.3f} ± {deviation:.3f}"
        )
        table.add_row(f"  of expected gradients, {DRAWS} draws (corrected)", "1", f"{raw:.3f} ({corrected:.3f})")
    speedup = statistics.median(times["autoregressive"]) / statistics.median(times["conditional"])
    table.add_row("updates/s, against autoregressive", "1", f"{speedup:.2f}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
