"""Tied copies: not sent between GPUs, and dropped from the object store's if vLLM's model has no module for them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlgaf_ray.actors.groups import LearnerWorker
from rlgaf_ray.config.lora import LoraSettings
from rlgaf_ray.models.lora import add_adapters
from rlgaf_ray.weights import receive
from rlgaf_ray.weights.manifest import announce
from rlgaf_ray.weights.object_store import without_absent_ties
from rlgaf_ray.weights.state import Receipt, to_arrays

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 16}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def gemma(*, tied: bool) -> PreTrainedModel:
    config = AutoConfig.for_model(
        "gemma2", **SMALL, num_key_value_heads=1, vocab_size=32, pad_token_id=0, tie_word_embeddings=tied
    )
    return AutoModelForCausalLM.from_config(config)


def learner_of(network: PreTrainedModel) -> LearnerWorker:
    worker = LearnerWorker.__new__(LearnerWorker)  # without a folder and an optimiser
    worker.policy = SimpleNamespace(network=lambda name: network)  # type: ignore[assignment]
    return worker


@pytest.mark.parametrize("adapted", [False, True])
def test_a_tied_copy_is_not_sent_between_gpus(adapted: bool) -> None:
    network = gemma(tied=True)
    if adapted:
        add_adapters(network, LoraSettings(rank=2), seed=0)
    update = learner_of(network).announce(3, network="policy")
    plain = gemma(tied=True)
    assert list(update.shapes) == [name for name in plain.state_dict() if name != HEAD]
    assert update.num_bytes == sum(parameter.nbytes for parameter in plain.parameters())
    receive.check(update, Receipt.of_model(network.config))


def test_an_untied_head_is_sent_between_gpus_and_is_required() -> None:
    network = gemma(tied=False)
    update = learner_of(network).announce(3, network="policy")
    assert list(update.shapes) == list(network.state_dict())
    receive.check(update, Receipt.of_model(network.config))
    state = {name: tensor for name, tensor in network.state_dict().items() if name != HEAD}
    with pytest.raises(ValueError, match=r"lack 'lm_head\.weight'"):
        receive.check(announce(state, 3), Receipt.of_model(network.config))


def test_a_head_that_was_untied_by_hand_is_sent_between_gpus() -> None:
    network = gemma(tied=True)
    network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.detach().clone())
    update = learner_of(network).announce(3, network="policy")
    assert HEAD in update.shapes
    receive.check(update, Receipt.of_model(network.config))


def test_only_copies_may_be_missing_and_only_between_gpus() -> None:
    network = gemma(tied=True)
    receipt = Receipt.of_model(network.config)
    state = network.state_dict()
    with pytest.raises(ValueError, match=r"lack 'model\.embed_tokens\.weight'"):
        receive.check(announce({name: state[name] for name in state if name not in (EMBEDDING, HEAD)}, 3), receipt)
    with pytest.raises(ValueError, match=r"'lm_head\.weight' of shape \[1\]"):
        receive.check(announce({**state, HEAD: torch.ones(1)}, 3), receipt)
    with pytest.raises(ValueError, match=r"lack 'lm_head\.weight'"):  # vLLM on CPU keeps its own copy
        receive.check(to_arrays({name: state[name] for name in state if name != HEAD}, 3), receipt)


def test_a_tied_copy_without_a_module_is_dropped() -> None:
    embedding = torch.ones(3, 2)
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.ones(2), "lm_head.weight": embedding}
    with_head, without_head = SimpleNamespace(model=1, lm_head=2), SimpleNamespace(model=1)
    assert without_absent_ties(tensors, with_head) == tensors
    assert list(without_absent_ties(tensors, without_head)) == ["model.embed_tokens.weight", "model.norm.weight"]
    untied = tensors | {"lm_head.weight": torch.ones(3, 2)}
    assert list(without_absent_ties(untied, without_head)) == list(untied)  # vLLM rejects it
