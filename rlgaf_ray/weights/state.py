"""Zero-copy conversion of a state dict to numpy arrays and back, and checks against the receiving model."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import nn

from rlgaf_ray.models.lora import plain_state
from rlgaf_ray.types import WeightUpdate

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Shapes = Mapping[str, tuple[int, ...]]


def to_arrays(
    state_dict: Mapping[str, torch.Tensor], policy_version: int, *, part: int = 0, num_parts: int = 1
) -> WeightUpdate:
    """View every entry of a ``state_dict()`` as a numpy array; bfloat16 is viewed as uint16.

    Contiguous CPU tensors are not copied, so in-place changes show in the update until it is in an object store.
    Tied entries keep both names and become one array object, which pickle stores once.
    ``part`` is the index of this chunk among the ``num_parts`` chunks of the state (``split_state``).
    """
    arrays: dict[str, np.ndarray] = {}
    dtypes: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...], torch.dtype], np.ndarray] = {}
    for name, tensor in state_dict.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype)
        if memory not in seen:
            seen[memory] = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
        arrays[name] = seen[memory]
        dtypes[name] = str(tensor.dtype).removeprefix("torch.")
    return WeightUpdate(policy_version, arrays, dtypes, part, num_parts)


def split_state(network: nn.Module, *, max_bytes: int) -> list[list[str]]:
    """Split the names of a network's ``state_dict()``, in order, into chunks of at most ``max_bytes``.

    An entry larger than ``max_bytes`` is a chunk of its own. Tied entries are in the same chunk, because they are one
    array and the receiver ties them again. For a sharded network every rank gets the same chunks. Adapters are merged
    into the weights they adapt (``merged_state``).
    """
    tied: dict[int, list[str]] = {}
    sizes: dict[int, int] = {}
    for name, tensor in plain_state(network).items():
        tied.setdefault(id(tensor), []).append(name)
        sizes[id(tensor)] = tensor.numel() * tensor.element_size()
    parts: list[list[str]] = []
    filled = 0
    for memory, names in tied.items():
        if not parts or filled + sizes[memory] > max_bytes:
            parts.append([])
            filled = 0
        parts[-1] += names
        filled += sizes[memory]
    return parts


def to_tensors(update: WeightUpdate) -> dict[str, torch.Tensor]:
    """View an update's arrays as tensors of their actual dtypes without copying; treat them as read-only."""
    with warnings.catch_warnings():
        # Arrays from an object store are read-only, which torch cannot express; we only copy from them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensors = {name: torch.from_numpy(array) for name, array in update.arrays.items()}
    return {name: tensor.view(getattr(torch, update.dtypes[name])) for name, tensor in tensors.items()}


def update_checksum(update: WeightUpdate) -> str:
    """Return the SHA-256 over the version and every entry's name, shape and dtype (not the values)."""
    return entries_checksum(update.policy_version, _shapes(update), update.dtypes)


def entries_checksum(policy_version: int, shapes: Shapes, dtypes: Mapping[str, str]) -> str:
    """Return ``update_checksum`` for weights given by their shapes and dtypes."""
    entries = [[name, list(shape), dtypes[name]] for name, shape in sorted(shapes.items())]
    return hashlib.sha256(json.dumps([policy_version, entries]).encode()).hexdigest()


def _shapes(update: WeightUpdate) -> Shapes:
    return {name: array.shape for name, array in update.arrays.items()}


def num_bytes(update: WeightUpdate) -> int:
    """Return the bytes of all entries, counting tied ones once."""
    return sum({id(array): array.nbytes for array in update.arrays.values()}.values())


def expected_shapes(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> dict[str, tuple[int, ...]]:
    """Return names and shapes in the ``state_dict()`` of a causal LM of this config, tied copies included."""
    return _shapes_of(_on_meta(config, trust_remote_code=trust_remote_code))


def _on_meta(config: PreTrainedConfig, *, trust_remote_code: bool) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def without_tied_copies(state: Mapping[str, torch.Tensor], network: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Drop the entries that are the same tensor as the one they are tied to, as ``save_pretrained`` does."""
    sources = network.all_tied_weights_keys  # such as lm_head.weight -> model.embed_tokens.weight
    return {
        name: tensor for name, tensor in state.items() if name not in sources or state.get(sources[name]) is not tensor
    }


class Receipt:
    """Tracks the entries received so far of an update in chunks, and checks that none is missing at the end.

    ``copies`` are the names of ``expected`` that a GPU-to-GPU update may lack (``without_tied_copies``).
    """

    def __init__(self, expected: Shapes, copies: Collection[str] = ()) -> None:
        self.expected = expected
        self.copies = copies
        self.received: dict[str, tuple[int, ...]] = {}

    @classmethod
    def of_model(cls, config: PreTrainedConfig, *, trust_remote_code: bool = False) -> Self:
        """Expect the state dict of a causal LM of this config."""
        model = _on_meta(config, trust_remote_code=trust_remote_code)
        return cls(_shapes_of(model), frozenset(model.all_tied_weights_keys))

    def take(self, update: WeightUpdate) -> None:
        """Check the next chunk before it is loaded. Raises ValueError like ``check_shapes``."""
        if update.is_first:
            self.received = {}
        self.received |= _shapes(update)
        expected = self.expected
        if not update.is_last:  # later chunks bring the other entries
            expected = {name: shape for name, shape in expected.items() if name in update.arrays}
        check_entries(update.policy_version, self.received, expected, known=self.expected)


def check_shapes(update: WeightUpdate, expected: Shapes) -> None:
    """Reject an update that is not a full state dict of the receiving model.

    A missing tied copy is the dangerous case: the output layer would silently keep its old weights.

    Raises:
        ValueError: names the first entry that is missing, unknown, or of another shape.
    """
    check_entries(update.policy_version, _shapes(update), expected, known=expected)


def check_entries(policy_version: int, shapes: Shapes, expected: Shapes, *, known: Shapes) -> None:
    """Check that ``shapes`` has all of ``expected`` and nothing outside ``known``; raises like ``check_shapes``."""
    for name, shape in expected.items():
        if name not in shapes:
            raise ValueError(
                f"weights of version {policy_version} lack {name!r}: send every entry of state_dict(), "
                "tied copies included, not named_parameters()"
            )
        if shapes[name] != shape:
            raise ValueError(
                f"weights of version {policy_version} have {name!r} of shape {list(shapes[name])}, "
                f"but the engine's model has {list(shape)}: learner and engine must load the same model"
            )
    for name in shapes:
        if name not in known:
            raise ValueError(
                f"weights of version {policy_version} have {name!r}, which the engine's model lacks: "
                "learner and engine must load the same model"
            )
