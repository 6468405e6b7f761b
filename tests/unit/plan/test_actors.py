"""Settings that change what an actor holds or computes: adapters, frozen blocks, micro-batches, completions."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

from rlgaf_ray.actors.packing import Node
from rlgaf_ray.actors.placement import plan_on
from rlgaf_ray.config import load_config
from rlgaf_ray.config.lora import LoraSettings
from rlgaf_ray.loop.monte_carlo import evaluated_positions
from rlgaf_ray.models.lora import add_adapters
from rlgaf_ray.plan.estimate import Estimate, Hardware, estimate
from rlgaf_ray.plan.memory import activations, vocabulary_activations
from rlgaf_ray.plan.model import shape_of
from rlgaf_ray.plan.page import fits
from rlgaf_ray.plan.shape import GIB, ModelShape
from rlgaf_ray.plan.speed import ASSUMED_CORE, ASSUMED_GPU
from rlgaf_ray.training.regularization import freeze_lower_layers

logging.disable_progress_bar()
LLAMA = AutoConfig.for_model(
    "llama", vocab_size=1000, hidden_size=64, intermediate_size=160, num_hidden_layers=5, num_attention_heads=8,
    num_key_value_heads=2, num_labels=1, pad_token_id=0,
)  # fmt: skip
SHAPE = shape_of(AutoModelForCausalLM.from_config(LLAMA))
SMALL = ["task.prompt_tokens=8", "task.response_tokens=24", "generator.average_decay=0"]


def made(*overrides: str, nodes: tuple[Node, ...] = (Node(8),), shape: ModelShape = SHAPE) -> Estimate:
    config = load_config(None, [*SMALL, *overrides])
    rates = ASSUMED_GPU if config.cluster.gpus_per_actor else ASSUMED_CORE
    return estimate(config, shape, plan_on(config, nodes), Hardware(nodes, 80 * GIB), rates, bfloat16=True)


def count(network, *, trained: bool) -> int:
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad or not trained)


def test_adapters_alone_have_gradients_and_moments() -> None:
    policy = AutoModelForCausalLM.from_config(LLAMA)
    add_adapters(policy, LoraSettings(rank=4), seed=0)
    memory = made("model.lora.rank=4").memory["learner"]
    assert memory.gradients == memory.optimizer / 2 == 4 * count(policy, trained=True)
    assert memory.weights == 4 * count(policy, trained=False)
    assert memory.reference == 0  # the policy without its adapters
    both = made("model.lora.rank=4", "warmup.sft.steps=5", "generator.reinforce.kl.reference=base").memory["learner"]
    assert both.reference == 4 * SHAPE.parameters  # the base model is another network


@pytest.mark.parametrize("frozen", [0, 2, 4, 5])
@pytest.mark.parametrize("rank", [0, 4])
def test_frozen_blocks_of_the_discriminator_have_weights_only(frozen: int, rank: int) -> None:
    network = AutoModelForSequenceClassification.from_config(LLAMA)
    add_adapters(network, LoraSettings(rank=rank), seed=0, trained=[network.score])
    freeze_lower_layers(network, lambda _: frozen)
    settings = ["discriminator.contrast_weight=0", f"model.lora.rank={rank}"]
    memory = made(*settings, f"discriminator.frozen_layers={frozen}").memory["discriminator"]
    norms = (2 * (5 - frozen) + 1) * 64 if frozen and not rank else 0  # the formula counts matrices
    assert memory.gradients == memory.optimizer / 2 == 4 * (count(network, trained=True) - norms)
    assert memory.weights == 4 * count(network, trained=False)
    fifths = made(*settings, "discriminator.frozen_layers=null").memory["discriminator"]
    assert fifths == made(*settings, "discriminator.frozen_layers=4").memory["discriminator"]


def test_frozen_blocks_save_no_activations() -> None:
    settings = ["discriminator.contrast_weight=0", "cluster.gpus_per_actor=1", "learner.micro_batch_size=1"]
    nodes = (Node(8, 8),)
    whole = made(*settings, "discriminator.frozen_layers=0", nodes=nodes).memory["discriminator"].activations
    top = made(*settings, "discriminator.frozen_layers=4", nodes=nodes).memory["discriminator"].activations
    rows = 3  # of a backward pass
    one = activations(SHAPE, rows=rows, length=32, element=2, fused_attention=True) / (SHAPE.layers + 1)
    embedding = 4 * SHAPE.output_parameters  # it is frozen too
    assert whole - top == pytest.approx(4 * one + embedding)


def test_chunks_limit_the_tensors_over_the_vocabulary() -> None:
    settings = ["learner.micro_batch_size=4", "generator.reinforce.kl={estimator: k1, placement: reward}"]
    whole, chunked, large = (
        made(*settings, f"learner.logprob_chunk_tokens={size}").memory["learner"].activations
        for size in ("null", 10, 1000)
    )
    saved = vocabulary_activations(SHAPE, tokens=4 * 24 - 10, element=2, exact_kl=False)
    assert whole - chunked == pytest.approx(saved)
    assert whole == large


def test_a_token_budget_replaces_the_micro_batch_size() -> None:
    def planned(*overrides: str) -> dict:
        return made("learner.micro_batch_size=16", *overrides).memory

    assert planned("learner.micro_batch_tokens=130") == planned("learner.micro_batch_size=4")  # 130 // 32
    assert planned("learner.micro_batch_tokens=5") == planned("learner.micro_batch_size=1")


def test_an_offloaded_reference_is_not_on_the_gpu() -> None:
    sharded = ["cluster.gpus_per_actor=1", "learner.num_workers=2", "learner.strategy=fsdp"]
    offload, nodes = "learner.fsdp.offload_reference=true", (Node(8, 8),)
    assert made(*sharded, nodes=nodes).memory["learner"].reference == 4 * SHAPE.parameters / 2
    assert made(*sharded, offload, nodes=nodes).memory["learner"].reference == 0
    replicas = ["cluster.gpus_per_actor=1", "learner.num_workers=2", offload]  # only shards are offloaded
    assert made(*replicas, nodes=nodes).memory["learner"].reference == 4 * SHAPE.parameters


def test_backward_passes_skip_frozen_weights() -> None:
    """A backward pass costs two forward passes: one each for the gradients of inputs and of weights."""
    full = made("discriminator.frozen_layers=0").phases
    top = made("discriminator.frozen_layers=4").phases
    adapters = made("model.lora.rank=4", "discriminator.frozen_layers=0").phases
    assert adapters["generator update"] / full["generator update"] == pytest.approx((1 + 1 + 1) / (1 + 2 + 1))
    work = made("discriminator.frozen_layers=0").work
    rows = work.discriminator_updates * (work.rollouts + work.demonstrations)
    name = "score and discriminator update"
    assert top[name] / full[name] == pytest.approx((work.rollouts + 1.4 * rows) / (work.rollouts + 3 * rows))
    assert adapters[name] / full[name] == pytest.approx((work.rollouts + 2 * rows) / (work.rollouts + 3 * rows))


def test_monte_carlo_completions_are_sampled_and_scored() -> None:
    search = ["generator.algorithm=seqgan", "generator.seqgan.num_completions=3", "generator.seqgan.stride=5"]
    plain, found = made("discriminator.updates_per_generator_update=0"), made(*search)
    completions = 64 * len(evaluated_positions(24, 5)) * 3
    assert (plain.work.completions, found.work.completions) == (0, completions) == (0, 64 * 4 * 3)
    assert "Monte-Carlo completions" not in plain.phases
    # Prefixes of 5, 10, 15 and 20 tokens: the mean completion is half of a response.
    ratio = found.phases["Monte-Carlo completions"] / found.phases["rollout"]
    assert 12 * 0.5 < ratio < 12
    scored = made(*search, "discriminator.updates_per_generator_update=0").phases["score and discriminator update"]
    assert scored == pytest.approx(13 * plain.phases["score and discriminator update"])
    assert found.phases["driver"] == pytest.approx(plain.phases["driver"] + 1e-4 * completions)
    averaged = made(*search, "generator.seqgan.rollout_policy_rate=0.8")  # pushed before the search
    assert averaged.phases["weight push"] == pytest.approx(2 * found.phases["weight push"])


@pytest.mark.parametrize(
    ("overrides", "advised", "unfit"),
    [
        (["model.lora.rank=4", "learner.num_workers=2"], "learner.micro_batch_size", "learner.strategy=fsdp"),
        (["learner.num_workers=2"], "learner.strategy=fsdp", "offload_reference"),
        (["learner.micro_batch_tokens=64"], "learner.micro_batch_tokens", "learner.strategy=fsdp"),
        (["cluster.placement=colocate"], "rollout.sleep_level=1", "learner.strategy=fsdp"),
        (["cluster.placement=colocate", "schedule.mode=async"], "gpu_memory_utilization", "sleep_level"),
    ],
)
def test_the_advice_is_valid_for_the_config(overrides: list[str], advised: str, unfit: str) -> None:
    on_gpu = ["cluster.gpus_per_actor=1", *overrides]
    plan = made(*on_gpu, nodes=(Node(8, 8),))
    sentence = fits(load_config(None, [*SMALL, *on_gpu]), plan, Hardware((Node(8, 8),), 0.1 * GIB))
    assert "does not fit" in sentence and advised in sentence and unfit not in sentence
