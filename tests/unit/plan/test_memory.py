"""Hand-computed bytes of a toy model of width 8 (2 heads of 4, MLP of 32, 3 layers, vocabulary 100) and of GPT-2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlgaf_ray.plan.memory import (
    Memory,
    activations,
    block_activations,
    cast_weights,
    embedding_gradients,
    kv_bytes_per_token,
    rollout_memory,
    trained,
    vocabulary_activations,
)
from rlgaf_ray.plan.shape import ModelShape

TOY = ModelShape(
    parameters=4000, layers=3, width=8, heads=2, kv_heads=2, head_size=4, feed_forward=32, gated=False, vocabulary=100,
    tied=True,
)  # fmt: skip
GROUPED = replace(TOY, kv_heads=1, gated=True)
GPT2 = ModelShape(124_439_808, 12, 768, 12, 12, 64, 3072, False, 50257, True)


def test_parameters_of_matrices() -> None:
    assert TOY.block_parameters == 4 * 8 * 8 + 2 * 8 * 32 == 768
    assert GROUPED.block_parameters == 2 * 64 + 2 * 8 * 4 + 3 * 8 * 32 == 960
    # The rest of GPT-2: 1,024 positions, biases and norms (9 h + i + 4 h per block, 2 h at the end).
    rest = 1024 * 768 + 12 * (3 * 768 + 768 + 3072 + 768 + 4 * 768) + 2 * 768
    assert GPT2.matrix_parameters + rest == GPT2.parameters
    assert GPT2.scalar_parameters == GPT2.parameters + 768
    assert replace(TOY, tied=False).scalar_parameters == 4000 - 800 + 8


def test_training_takes_sixteen_bytes_per_parameter() -> None:
    memory = trained(1000)
    assert (memory.weights, memory.gradients, memory.optimizer, memory.total) == (4000, 4000, 8000, 16000)
    assert trained(1000, shards=4).total == 4000


def test_sixteen_bit_copies() -> None:
    assert cast_weights(TOY, 3104, element=2) == 6208
    assert cast_weights(TOY, 3104, element=4) == 0
    assert cast_weights(TOY, 3104, element=2, shards=4) == 2 * 2 * 768  # two blocks at a time
    assert cast_weights(TOY, 3104, element=4, shards=4) == 2 * 4 * 768


@pytest.mark.parametrize(
    ("shape", "element", "fused", "per_token"),
    [
        (TOY, 4, False, 64 * 8 + 4 * 2 * 5),
        (TOY, 2, False, 36 * 8 + (2 + 4) * 2 * 5),
        (TOY, 4, True, 64 * 8 + 4 * 2),
        (replace(TOY, composed=True), 4, True, 64 * 8 + 4 * 2 + 3 * 4 * 32),
        (GROUPED, 4, True, 128 + 64 + 4 * (8 + 2 * 4) + 4 * 8 + 4 * 2 + 4 * 4 * 32),
        (GROUPED, 2, True, 128 + 80 + 2 * (8 + 2 * 4) + 2 * 8 + 4 * 2 + 4 * 2 * 32),
    ],
)
def test_activations_of_a_block(shape: ModelShape, element: int, fused: bool, per_token: int) -> None:
    found = block_activations(shape, tokens=10, length=5, element=element, fused_attention=fused)
    assert found == 10 * per_token


def test_activations_of_all_blocks() -> None:
    settings: dict[str, Any] = {"rows": 2, "length": 5, "element": 4, "fused_attention": False}
    assert activations(TOY, **settings) == (3 + 1) * 5520
    assert activations(TOY, **settings, checkpointing=True) == 3 * (4 * 8 * 10) + 2 * 5520


def test_tensors_over_the_vocabulary() -> None:
    assert vocabulary_activations(TOY, tokens=10, element=2, exact_kl=True) == 10 * 100 * 35
    assert vocabulary_activations(TOY, tokens=10, element=4, exact_kl=False) == 10 * 100 * 16


def test_gradients_of_the_embedding() -> None:
    assert embedding_gradients(TOY, output=True) == 2 * 4 * 800
    assert embedding_gradients(TOY, output=False) == embedding_gradients(replace(TOY, tied=False), output=True) == 3200


def test_kv_cache() -> None:
    assert kv_bytes_per_token(TOY, element=4) == 2 * 3 * 8 * 4
    llama = ModelShape(8_030_261_248, 32, 4096, 32, 8, 128, 14336, True, 128256, False)
    assert kv_bytes_per_token(llama, element=2) == 128 * 2**10


def test_an_engine_holds_its_shard_and_on_cpu_also_packed_copies() -> None:
    settings = {"kv_cache": 5.0, "runtime": 7.0}
    assert rollout_memory(TOY, element=2, shards=4, packed=False, **settings) == Memory(
        weights=2000, kv_cache=5.0, runtime=7.0
    )
    packed = rollout_memory(TOY, element=4, shards=1, packed=True, **settings)
    assert packed.weights == packed.reference == 4 * (4000 + 2 * 800)
