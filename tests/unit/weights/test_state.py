"""Conversion of a state dict to arrays and back: zero-copy, dtypes and tied names preserved."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlgaf_ray.weights.state import (
    Receipt,
    check_shapes,
    expected_shapes,
    num_bytes,
    split_state,
    to_arrays,
    to_tensors,
    update_checksum,
)

TIED = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
UNTIED = LlamaConfig(
    vocab_size=20,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    tie_word_embeddings=False,
)


def test_contiguous_tensors_are_viewed_both_ways() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    update = to_arrays({"a": tensor}, policy_version=4)
    assert update.policy_version == 4
    assert update.arrays["a"].ctypes.data == tensor.data_ptr()
    assert to_tensors(update)["a"].data_ptr() == tensor.data_ptr()


def test_non_contiguous_tensors_are_copied_correctly() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(to_tensors(to_arrays({"a": tensor}, 0))["a"], tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_round_trip_is_bit_exact(dtype: torch.dtype) -> None:
    tensor = (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    update = to_arrays({"a": tensor, "scalar": tensor[0, 0].clone()}, 0)
    back = to_tensors(pickle.loads(pickle.dumps(update)))
    assert back["a"].dtype == dtype
    assert torch.equal(back["a"], tensor)
    assert torch.equal(back["scalar"], tensor[0, 0])
    assert f"torch.{update.dtypes['a']}" == str(dtype)


def test_bfloat16_is_viewed_as_uint16() -> None:
    tensor = torch.tensor([1.0, -2.5], dtype=torch.bfloat16)
    update = to_arrays({"a": tensor}, 0)
    assert update.arrays["a"].dtype == np.uint16
    assert update.arrays["a"].ctypes.data == tensor.data_ptr() == to_tensors(update)["a"].data_ptr()
    assert update.arrays["a"].tolist() == [0x3F80, 0xC020]


def test_read_only_arrays_cause_no_warning() -> None:
    update = to_arrays({"a": torch.ones(3)}, 0)
    update.arrays["a"].flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_tensors(update)["a"].tolist() == [1, 1, 1]


def test_tied_entries_keep_both_names_and_are_stored_once() -> None:
    model = GPT2LMHeadModel(TIED)
    update = to_arrays(model.state_dict(), 0)
    assert update.arrays["lm_head.weight"] is update.arrays["transformer.wte.weight"]
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(update, protocol=5, buffer_callback=buffers.append)
    stored = sum(memoryview(buffer).nbytes for buffer in buffers)
    assert stored == num_bytes(update) == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize(("config", "kind"), [(TIED, GPT2LMHeadModel), (UNTIED, LlamaForCausalLM)])
def test_expected_shapes_match_the_state_dict(config, kind) -> None:
    state = kind(config).state_dict()
    assert expected_shapes(config) == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert "lm_head.weight" in expected_shapes(config)
    check_shapes(to_arrays(state, 0), expected_shapes(config))


def test_the_first_mismatch_is_named() -> None:
    expected = {"a": (2, 3), "tied": (2,)}
    whole = {"a": torch.ones(2, 3), "tied": torch.ones(2)}
    with pytest.raises(ValueError, match=r"version 7 lack 'tied': .*state_dict\(\).*named_parameters"):
        check_shapes(to_arrays({"a": whole["a"]}, 7), expected)
    with pytest.raises(ValueError, match=r"'a' of shape \[3, 2\], but the engine's model has \[2, 3\]"):
        check_shapes(to_arrays({**whole, "a": torch.ones(3, 2)}, 7), expected)
    with pytest.raises(ValueError, match="'other', which the engine's model lacks"):
        check_shapes(to_arrays({**whole, "other": torch.ones(1)}, 7), expected)


def test_the_checksum_covers_version_names_shapes_and_dtypes() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    variants = [
        to_arrays(base, 1),
        to_arrays(base, 2),
        to_arrays({"a": base["a"], "c": base["b"]}, 1),
        to_arrays({"a": torch.zeros(3, 2), "b": base["b"]}, 1),
        to_arrays({"a": base["a"].half(), "b": base["b"]}, 1),
        to_arrays({"a": base["a"].to(torch.bfloat16), "b": base["b"]}, 1),
        to_arrays({"a": base["a"]}, 1),
    ]
    assert len({update_checksum(update) for update in variants}) == len(variants)
    assert update_checksum(variants[0]) == update_checksum(to_arrays(dict(reversed(base.items())), 1))


def test_chunks_have_every_entry_in_order_with_ties_together() -> None:
    """20 x 8 and 8 x 8 float32 are 640 and 256 bytes; the tied output layer is in the embedding's chunk."""
    model = GPT2LMHeadModel(TIED)
    parts = split_state(model, max_bytes=900)
    assert parts[0] == ["transformer.wte.weight", "lm_head.weight", "transformer.wpe.weight"]
    assert sorted(name for part in parts for name in part) == sorted(model.state_dict())
    state = model.state_dict()
    for part in parts:
        assert num_bytes(to_arrays({name: state[name] for name in part}, 0)) <= 1024  # the largest single entry
    assert len(split_state(model, max_bytes=2**20)) == 1
    assert len(split_state(model, max_bytes=1)) == len(state) - 1  # one entry per chunk, except for the tie


def test_a_receipt_accepts_chunks_and_reports_missing_entries() -> None:
    state = {"a": torch.ones(2, 3), "b": torch.ones(4), "tied": torch.ones(2)}
    receipt = Receipt({name: tuple(tensor.shape) for name, tensor in state.items()})

    def part(names: str, number: int, **changed: torch.Tensor):
        return to_arrays({name: (state | changed)[name] for name in names.split()}, 9, part=number, num_parts=2)

    for _ in range(2):
        receipt.take(part("a", 0))
        receipt.take(part("b tied", 1))
    receipt.take(part("a", 0))
    with pytest.raises(ValueError, match="lack 'tied'"):
        receipt.take(part("b", 1))
    with pytest.raises(ValueError, match="shape"):
        receipt.take(part("a", 0, a=torch.ones(3, 2)))
    with pytest.raises(ValueError, match="which the engine's model lacks"):
        receipt.take(part("c", 0, c=torch.ones(1)))
