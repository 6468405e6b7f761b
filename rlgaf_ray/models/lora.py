"""Low-rank adapters in place (LoRA, Hu et al. 2021, arXiv 2106.09685): y = x W + (alpha / rank) x A B, W frozen.

The adapters are peft's, put beside the linear layers of a network that stays what it was: its class, its forward, its
name for every other weight. Whoever only calls the network never sees them. Dropout stays off, as everywhere here:
sampling and learning must see the same distribution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlgaf_ray.config.lora import LoraSettings
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.folder import save_network
from rlgaf_ray.models.generator import response_hidden
from rlgaf_ray.types import SequenceBatch

ADAPTERS = "adapters.safetensors"
ADAPTER_NAME = "default"
FINGERPRINT_BYTES = 4096  # of every frozen weight


def add_adapters(
    network: PreTrainedModel, settings: LoraSettings, *, seed: int, trained: Sequence[nn.Module] = ()
) -> None:
    """Freeze a network but for its new adapters and the modules named by ``trained`` (a head). Rank 0 does nothing.

    B starts at zero: the network is at first what it was. A is drawn from ``seed``.

    Raises:
        UserError: ``model.lora.target_modules`` names no linear layer of the network.
    """
    if settings.rank == 0:
        return
    from peft import LoraConfig, inject_adapter_in_model

    there = linear_layers(network)
    targets = settings.target_modules or sorted(there)
    if unknown := sorted(set(targets) - there.keys()):
        raise UserError(
            f"model.lora.target_modules names {unknown[0]!r}, but the linear layers of {type(network).__name__} are "
            f"{', '.join(sorted(there))}"
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
        target_modules=targets,
        fan_in_fan_out=any(there[name] is Conv1D for name in targets),  # GPT-2 keeps its weights transposed
    )
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network)
    for module in trained:
        module.requires_grad_(True)


def linear_layers(network: PreTrainedModel) -> dict[str, type[nn.Module]]:
    """The last part of the names of the linear layers below the head, and their class."""
    found: dict[str, type[nn.Module]] = {}
    for name, module in network.base_model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            found[name.rpartition(".")[2]] = type(module)
    return found


def has_adapters(network: nn.Module) -> bool:
    return bool(_adapted_layers(network))


def _adapted_layers(network: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """The frozen network alone."""
    layers = _adapted_layers(network).values()
    for layer in layers:
        # Not peft's enable_adapters(): that stops their gradient too, of which a graph may be waiting for its backward.
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


class WithoutAdapters:
    """The frozen network, as a model beside the adapted one, without a second copy of its weights."""

    def __init__(self, network: PreTrainedModel) -> None:
        self.network = network
        self.config = network.config

    @property
    def device(self) -> torch.device:
        return self.network.device

    def __call__(self, **inputs: Any) -> Any:
        with adapters_off(self.network):
            return self.network(**inputs)

    def response_hidden(self, sequences: SequenceBatch) -> Tensor:
        with adapters_off(self.network):
            return response_hidden(self.network, sequences)

    def get_output_embeddings(self) -> nn.Module:
        """Which never has an adapter."""
        return self.network.get_output_embeddings()


def frozen_start(network: PreTrainedModel, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """What the network was before it learned: itself without its adapters, or a copy that is loaded for it."""
    if has_adapters(network):
        return cast(PreTrainedModel, WithoutAdapters(network))
    return load().requires_grad_(False)


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's own tensors, ties and all, under the names that they have in one without adapters."""
    layers = _adapted_layers(network)
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in network.state_dict(keep_vars=True).items()
        if name.partition(".lora_")[0] not in layers
    }


@torch.no_grad()
def merged_state(network: nn.Module, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The ``state_dict()`` (or some ``names`` of it) of a plain network that computes the same: W + (alpha / rank) A B.

    Only adapted weights are new tensors. A network without adapters gives its own tensors, ties and all.
    """
    layers = _adapted_layers(network)
    state = plain_state(network)
    merged: dict[str, Tensor] = {}
    for name in state if names is None else names:
        owner, _, kind = name.rpartition(".")
        merged[name] = state[name]
        if kind == "weight" and owner in layers:
            merged[name] = state[name] + layers[owner].get_delta_weight(ADAPTER_NAME).to(state[name].dtype)
    return merged


def export_network(network: PreTrainedModel, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
    """A plain Hugging Face folder, adapters merged. ``state``: its whole content, where the network holds a part."""
    if state is None and has_adapters(network):
        state = merged_state(network)
    save_network(network, folder, state)


def save_adapters(network: PreTrainedModel, folder: Path) -> None:
    """Everything that is trained, and a fingerprint of the frozen weights that it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = {name: tensor.detach().contiguous() for name, tensor in _trained(network).items()}
    save_file(trained, folder / ADAPTERS, metadata={"frozen": fingerprint(network)})


def load_adapters(network: PreTrainedModel, folder: Path) -> None:
    """Raises ``UserError`` where the file is not of this network: other frozen weights, other adapters."""
    path = folder / ADAPTERS
    if not path.is_file():
        raise UserError(f"{folder} holds no adapters: model.lora cannot be switched on in the middle of a run")
    with safe_open(path, framework="pt", device=str(network.device)) as file:
        if file.metadata()["frozen"] != fingerprint(network):
            raise UserError(
                f"{path} belongs to other frozen weights: go on with the warm-up and the model that the run began with"
            )
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    trained = _trained(network)
    if {name: tensor.shape for name, tensor in saved.items()} != {n: tensor.shape for n, tensor in trained.items()}:
        raise UserError(f"{path} has adapters of another shape: model.lora must stay as it was when the run began")
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(saved[name])


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of names, shapes and first bytes of the frozen weights: another training changes every one of them."""
    digest = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
        if not parameter.requires_grad:
            start = parameter.detach().flatten()[:FINGERPRINT_BYTES].cpu().view(torch.uint8)[:FINGERPRINT_BYTES]
            digest.update(f"{name} {list(parameter.shape)}".encode())
            digest.update(start.numpy().tobytes())
    return digest.hexdigest()
