"""Tied copies are dropped if vLLM's model has no module for them."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from rlgaf_ray.weights.object_store import without_absent_ties


def test_a_tied_copy_without_a_module_is_dropped() -> None:
    embedding = torch.ones(3, 2)
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.ones(2), "lm_head.weight": embedding}
    with_head, without_head = SimpleNamespace(model=1, lm_head=2), SimpleNamespace(model=1)
    assert without_absent_ties(tensors, with_head) == tensors
    assert list(without_absent_ties(tensors, without_head)) == ["model.embed_tokens.weight", "model.norm.weight"]
    untied = tensors | {"lm_head.weight": torch.ones(3, 2)}
    assert list(without_absent_ties(untied, without_head)) == list(untied)  # vLLM rejects it
