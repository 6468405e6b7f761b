"""The parts of SeqGAN's synthetic experiment: oracle, maximum likelihood, and training against the discriminator."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from fast_lstm import LstmSampler, mean_nll, sequence_logprobs
from safetensors.torch import load_file
from torch import Tensor

from rlgaf_ray.loop.monte_carlo import evaluated_positions
from rlgaf_ray.models.cnn import CnnDiscriminator, build_cnn
from rlgaf_ray.models.lstm import LstmForCausalLM, build_lstm
from rlgaf_ray.objectives.advantages import scale_advantages
from rlgaf_ray.objectives.baselines import leave_one_out_baseline
from rlgaf_ray.objectives.discriminator import discriminator_loss
from rlgaf_ray.objectives.policy import reinforce_loss
from rlgaf_ray.objectives.rewards import discriminator_reward
from rlgaf_ray.training.averaging import update_average
from rlgaf_ray.training.optimizer import optimizer_step, schedule_factor
from rlgaf_ray.types import SequenceBatch

Weights = dict[str, Tensor]
Report = Callable[[int, dict[str, float]], None]  # what has been done, and the measures then


@dataclass(frozen=True)
class Settings:
    """Sizes are SeqGAN's; learning rates and schedules are ours."""

    vocabulary: int = 5000
    length: int = 20
    hidden: int = 32
    num_real: int = 10_000
    num_held_out: int = 1_000
    batch: int = 64
    mle_epochs: int = 80  # at most
    mle_patience: int = 6
    mle_learning_rate: float = 0.01
    pretrain_steps: int = 150  # of the discriminator, before the generator moves
    discriminator_steps: int = 1  # for each of the generator
    discriminator_learning_rate: float = 1e-3
    filters: int = 64
    widest_window: int = 3
    dropout: float = 0.25
    contrast_weight: float = 1.0  # real sequences with a share of their tokens replaced are fake as well
    replaced: float = 0.5
    steps: int = 60  # of the generator, adversarial, at most; its learning rate falls to zero over them
    patience: int = 15  # steps without a new low of NLL_oracle, as for MLE
    learning_rate: float = 5e-3
    completions: int = 16
    stride: int = 5
    rollout_rate: float = 0.8
    measured: int = 1_000  # sequences, for a point of a curve
    measured_at_the_end: int = 2_000
    measure_every: int = 5


class Oracle:
    """The real distribution, what it wrote, and the two measures."""

    def __init__(self, model: LstmForCausalLM, settings: Settings, rng: torch.Generator) -> None:
        self.model, self.settings, self.rng = model, settings, rng
        sampler = LstmSampler(model)
        self.real = sampler.sample(settings.num_real, settings.length, rng)
        self.held_out = sampler.sample(settings.num_held_out, settings.length, rng)

    def measure(self, generator: LstmForCausalLM, *, temperature: float = 1.0, final: bool = False) -> dict[str, float]:
        settings = self.settings
        size = settings.measured_at_the_end if final else settings.measured
        samples = LstmSampler(generator, temperature=temperature).sample(size, settings.length, self.rng)
        return {
            "nll_oracle": nll(self.model, samples),
            "nll_gen": nll(generator, self.held_out, temperature=temperature),
            "entropy": nll(generator, samples, temperature=temperature),
        }

    def references(self) -> dict[str, float]:
        """NLL_oracle of what no training can beat by imitation, and of no training at all."""
        tokens = torch.randint(self.settings.vocabulary, self.held_out.shape, generator=self.rng)
        return {"real": nll(self.model, self.held_out), "random": nll(self.model, tokens)}


@torch.no_grad()
def nll(model: LstmForCausalLM, tokens: Tensor, *, temperature: float = 1.0) -> float:
    """Nats a token."""
    return -float(sequence_logprobs(model, tokens, temperature=temperature).double().mean())


def load_oracle(path: Path | None, settings: Settings, seed: int) -> LstmForCausalLM:
    """From its file, or drawn."""
    oracle = new_lstm(settings, seed=1_000_000 + seed, deviation=1.0)
    if path is not None:
        weights = load_file(path)
        weights.setdefault("lstm.bias_hh_l0", torch.zeros_like(oracle.state_dict()["lstm.bias_hh_l0"]))
        expected = {name: tuple(tensor.shape) for name, tensor in oracle.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if found != expected:
            raise ValueError(f"{path} holds {found}, but the oracle needs {expected}: see the head of this file")
        oracle.load_state_dict(weights)
    return oracle.requires_grad_(False)


def new_lstm(settings: Settings, *, seed: int, deviation: float = 0.1) -> LstmForCausalLM:
    return build_lstm(
        vocab_size=settings.vocabulary,
        end_of_text_id=0,
        seed=seed,
        embedding_size=settings.hidden,
        hidden_size=settings.hidden,
        initializer_range=deviation,
    )


def pretrain(
    generator: LstmForCausalLM, oracle: Oracle, settings: Settings, report: Report
) -> tuple[list[dict[str, float]], dict[str, Weights]]:
    """Maximum likelihood until NLL_oracle has found no new low for ``mle_patience`` epochs.

    Returns the measures before training and after every epoch, and the weights at the lowest of each measure.
    """
    optimizer = torch.optim.Adam(generator.parameters(), lr=settings.mle_learning_rate, fused=True)
    history, best = [oracle.measure(generator)], {}
    for epoch in range(1, settings.mle_epochs + 1):
        for rows in torch.randperm(len(oracle.real), generator=oracle.rng).split(settings.batch):
            mean_nll(generator, oracle.real[rows]).backward()
            optimizer_step(
                optimizer, generator.parameters(), learning_rate=settings.mle_learning_rate, max_grad_norm=5.0
            )
        history.append(oracle.measure(generator))
        report(epoch, history[-1])
        for measure in ("nll_oracle", "nll_gen"):
            if lowest(history, measure) == epoch:
                best[measure] = weights_of(generator)
        if epoch - lowest(history, "nll_oracle") >= settings.mle_patience:
            break
    return history, best


def lowest(history: list[dict[str, float]], measure: str) -> int:
    """The epoch, from 1, at which the measure was lowest."""
    return min(range(1, len(history)), key=lambda epoch: history[epoch][measure])


def weights_of(model: LstmForCausalLM) -> Weights:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


class Adversary:
    """The generator against the CNN: SeqGAN's algorithm 1, with another baseline and reward.

    The reward is the discriminator's logit, log p_real / p_generator at its best. The advantage of a block of
    ``stride`` tokens is the value of the prefix that ends with it less the value of the prefix before it, both means
    over ``completions`` by the rollout policy: what the block itself has won or lost.
    """

    def __init__(self, generator: LstmForCausalLM, oracle: Oracle, settings: Settings, seed: int) -> None:
        self.generator, self.oracle, self.settings, self.rng = generator, oracle, settings, oracle.rng
        self.rollout_policy = copy.deepcopy(generator).requires_grad_(False)
        windows = range(1, settings.widest_window + 1)
        self.discriminator = build_cnn(
            vocab_size=settings.vocabulary,
            pad_token_id=0,
            seed=seed,
            embedding_size=2 * settings.hidden,
            window_sizes=windows,
            num_filters=[settings.filters] * len(windows),
            dropout=settings.dropout,
        )
        with torch.no_grad():
            known = torch.cat([generator.embedding.weight, generator.lm_head.weight], 1)
            self.discriminator.network.embedding.weight.copy_((known - known.mean(0)) / (2 * known.std(0)))
        self.positions = evaluated_positions(settings.length, settings.stride)
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=settings.learning_rate, fused=True)
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=settings.discriminator_learning_rate, fused=True
        )

    def update_discriminator(self) -> dict[str, float]:
        settings = self.settings
        real, contrast = self.real_rows(), self.real_rows()
        fake = LstmSampler(self.generator).sample(settings.batch, settings.length, self.rng)
        noise = torch.randint(settings.vocabulary, contrast.shape, generator=self.rng)
        replaced = torch.rand(contrast.shape, generator=self.rng) < settings.replaced
        contrast = torch.where(replaced, noise, contrast)
        self.discriminator.train()
        real_logits, fake_logits, contrast_logits = logits(self.discriminator, torch.cat([real, fake, contrast])).chunk(
            3
        )
        self.discriminator.eval()
        loss, metrics = discriminator_loss(
            real_logits, fake_logits, contrast_logits=contrast_logits, contrast_weight=settings.contrast_weight
        )
        (loss + self.discriminator.penalty()).backward()
        optimizer_step(
            self.discriminator_optimizer,
            self.discriminator.parameters(),
            learning_rate=settings.discriminator_learning_rate,
            max_grad_norm=5.0,
        )
        return {name: float(value) for name, value in metrics.items()}

    def real_rows(self) -> Tensor:
        rows = torch.randint(len(self.oracle.real), (self.settings.batch,), generator=self.rng)
        return self.oracle.real[rows]

    def update_generator(self, step: int) -> None:
        """REINFORCE on the blocks' advantages; ``step`` counts from 0."""
        settings = self.settings
        factor = schedule_factor(step, num_steps=settings.steps, num_warmup_steps=0, schedule="linear")
        tokens = LstmSampler(self.generator).sample(settings.batch, settings.length, self.rng)
        everything = torch.ones_like(tokens, dtype=torch.bool)
        advantages = self.block_advantages(tokens).repeat_interleave(settings.stride, 1)[:, : settings.length]
        advantages = scale_advantages(advantages, everything, scale="batch", group_size=1)
        loss, _ = reinforce_loss(sequence_logprobs(self.generator, tokens), advantages, everything, average="token")
        loss.backward()
        optimizer_step(
            self.optimizer,
            self.generator.parameters(),
            learning_rate=settings.learning_rate * factor,
            max_grad_norm=5.0,
        )
        update_average(self.rollout_policy, self.generator, rate=settings.rollout_rate)

    @torch.no_grad()
    def block_advantages(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, blocks]."""
        sampler = LstmSampler(self.rollout_policy)
        completions = sampler.complete(tokens, self.positions, self.settings.completions, self.rng)
        values = [self.rewards(part.flatten(0, 1)).view(len(tokens), -1).mean(1) for part in completions]
        values.append(self.rewards(tokens))
        first = leave_one_out_baseline(values[0], group_size=len(tokens))
        return torch.stack([after - before for before, after in zip([first, *values], values, strict=False)], 1)

    def rewards(self, tokens: Tensor) -> Tensor:
        return discriminator_reward(
            torch.cat([logits(self.discriminator, part) for part in tokens.split(256)]), kind="logit"
        )


def logits(discriminator: CnnDiscriminator, tokens: Tensor) -> Tensor:
    everything = torch.ones_like(tokens)
    return discriminator(SequenceBatch(tokens, everything, everything.bool()))
