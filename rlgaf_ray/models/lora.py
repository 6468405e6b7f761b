"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): y = x W + (alpha / rank) x A B with frozen W.

peft injects the adapters into the linear layers in place: the network keeps its class, its forward and the names of its
other weights. LoRA dropout is off, so that sampling and training use the same distribution.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from rlgaf_ray.config.lora import LoraSettings
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.folder import save_network
from rlgaf_ray.models.generator import response_hidden
from rlgaf_ray.types import SequenceBatch

ADAPTERS = "adapters.safetensors"
ADAPTER_NAME = "default"
OWNER = "network"
LINEAR = (nn.Linear, Conv1D, FalconLinear)
REFUSED = {"falcon_h1": "out_proj", "jamba": "dt_proj", "nemotron_h": "out_proj"}
"""By ``model_type``, the layer of its Mamba blocks whose weight is read directly, past an adapter."""
FINGERPRINT_BYTES = 4096  # hashed per frozen weight


def add_adapters(
    network: PreTrainedModel, settings: LoraSettings, *, seed: int, trained: Sequence[nn.Module] = ()
) -> None:
    """Add adapters and freeze everything else, except the modules ``trained`` (a head). Rank 0 does nothing.

    A is initialised from ``seed`` and B with zeros, so that the network's outputs do not change at first.

    Raises:
        UserError: the network has no linear layer that can have an adapter, or a name in ``model.lora.target_modules``
            is none of them.
    """
    if settings.rank == 0:
        return
    from peft import LoraConfig, inject_adapter_in_model

    there = linear_layers(network)
    known = {_last(name) for name in there}
    wanted = set(settings.target_modules or known)
    family = f"{type(network).__name__} ({network.config.model_type})"
    if not there:
        raise UserError(f"model.lora has no linear layer to adapt in {family}: set model.lora.rank to 0")
    if unknown := sorted(wanted - known):
        raise UserError(
            f"model.lora.target_modules names {unknown[0]!r}, but the linear layers of {family} are "
            f"{', '.join(sorted(known))}"
        )
    targets = {name: module for name, module in there.items() if _last(name) in wanted}
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft accepts any number
        target_modules=[f"{OWNER}.{name}" for name in targets],
        fan_in_fan_out=Conv1D in map(type, targets.values()),  # GPT-2 stores its weights transposed
    )
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # An owner without a config hides the family: for some, peft would adapt fused experts in place of our targets.
        inject_adapter_in_model(config, nn.ModuleDict({OWNER: network}))
    for module in trained:
        module.requires_grad_(True)


def linear_layers(network: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the linear layers below the head that can have an adapter, by their names in the network.

    Routers, which subclass ``nn.Linear``, cannot, nor can those in ``REFUSED``, nor layers that share a weight: the
    adapters of each would merge into another weight.
    """
    below = set(network.base_model.modules())
    refused = REFUSED.get(network.config.model_type)
    named = dict(network.named_modules(remove_duplicate=False))
    uses = Counter(id(weight) for module in named.values() for weight in module.parameters(recurse=False))
    return {
        name: module
        for name, module in named.items()
        if type(module) in LINEAR and module in below and _last(name) != refused and uses[id(module.weight)] == 1
    }


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def check_adapters(config: PreTrainedConfig, settings: LoraSettings, *, trust_remote_code: bool = False) -> None:
    """Raise ``UserError`` as ``add_adapters`` does for a causal LM of this config, on the meta device."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        add_adapters(network, settings, seed=0)


def has_adapters(network: nn.Module) -> bool:
    return bool(_adapted_layers(network))


def _adapted_layers(network: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """Bypass the adapters within the block."""
    layers = _adapted_layers(network).values()
    for layer in layers:
        # Not peft's enable_adapters(): it also changes requires_grad, which a pending backward may need.
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


class WithoutAdapters:
    """A view of an adapted network without its adapters, which shares its weights."""

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
        """Return the output layer, which never has an adapter."""
        return self.network.get_output_embeddings()


def frozen_start(network: PreTrainedModel, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Return the network before training: a view without adapters, or a frozen copy from ``load``."""
    if has_adapters(network):
        return cast(PreTrainedModel, WithoutAdapters(network))
    return load().requires_grad_(False)


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the network's tensors without the adapters', under their original names; ties are preserved."""
    layers = _adapted_layers(network)
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in network.state_dict(keep_vars=True).items()
        if name.partition(".lora_")[0] not in layers
    }


@torch.no_grad()
def merged_state(network: nn.Module, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return the ``state_dict()`` (or only ``names``) of the equivalent plain network, W + (alpha / rank) A B.

    Only adapted weights are new tensors; all others are the network's own, with their ties.
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
    """Write a plain Hugging Face folder with merged adapters. ``state``: the full state dict of a sharded network."""
    if state is None and has_adapters(network):
        state = merged_state(network)
    save_network(network, folder, state)


def save_adapters(network: PreTrainedModel, folder: Path) -> None:
    """Save all trainable weights, and a fingerprint of the frozen weights that they belong to."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = {name: tensor.detach().contiguous() for name, tensor in _trained(network).items()}
    save_file(trained, folder / ADAPTERS, metadata={"frozen": fingerprint(network)})


def load_adapters(network: PreTrainedModel, folder: Path) -> None:
    """Load what ``save_adapters`` wrote. Raises ``UserError`` if frozen weights or adapter shapes differ."""
    path = folder / ADAPTERS
    if not path.is_file():
        raise UserError(f"{folder} has no adapters: model.lora cannot be enabled in a resumed run")
    with safe_open(path, framework="pt", device=str(network.device)) as file:
        if file.metadata()["frozen"] != fingerprint(network):
            raise UserError(
                f"{path} belongs to other frozen weights: resume with the model and the warm-up that the run began with"
            )
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    trained = _trained(network)
    if {name: tensor.shape for name, tensor in saved.items()} != {n: tensor.shape for n, tensor in trained.items()}:
        raise UserError(f"{path} has adapters of another shape: resume with the model.lora that the run began with")
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(saved[name])


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def fingerprint(network: nn.Module) -> str:
    """Return a SHA-256 of names, shapes and first bytes of the frozen weights; enough, as training changes them all."""
    digest = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
        if not parameter.requires_grad:
            start = parameter.detach().flatten()[:FINGERPRINT_BYTES].cpu().view(torch.uint8)[:FINGERPRINT_BYTES]
            digest.update(f"{name} {list(parameter.shape)}".encode())
            digest.update(start.numpy().tobytes())
    return digest.hexdigest()
