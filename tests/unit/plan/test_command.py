"""``rlgaf plan`` end to end: shapes without weights, printed tables, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from rlgaf_ray.actors.packing import Node
from rlgaf_ray.actors.placement import plan_on
from rlgaf_ray.config import load_config
from rlgaf_ray.main import main
from rlgaf_ray.models.generator import build_tiny_gpt2
from rlgaf_ray.plan.actors import discriminator_memory, learner_memory
from rlgaf_ray.plan.command import plan
from rlgaf_ray.plan.estimate import Hardware, estimate
from rlgaf_ray.plan.memory import Memory, block_activations
from rlgaf_ray.plan.model import generator_shape, shape_of
from rlgaf_ray.plan.page import ROLES
from rlgaf_ray.plan.shape import GIB, MIB, ModelShape
from rlgaf_ray.plan.speed import ASSUMED_CORE, ASSUMED_GPU

LLAMA = LlamaConfig(
    vocab_size=1000, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2,
)  # fmt: skip


def test_the_shapes_of_the_built_in_models() -> None:
    model = build_tiny_gpt2(vocab_size=4096, end_of_text_id=0, seed=0)
    shape = generator_shape(load_config(None, ["model.generator=tiny-gpt2"]))
    assert shape == ModelShape(model.num_parameters(), 4, 192, 3, 3, 64, 768, False, 4096, True)
    assert generator_shape(load_config()) == ModelShape(3_035_712, 5, 192, 3, 3, 64, 768, False, 4096, True)


def test_the_shape_of_a_folder_without_weights(tmp_path: Path) -> None:
    LLAMA.save_pretrained(tmp_path)
    shape = generator_shape(load_config(None, [f"model.generator={tmp_path}"]))
    assert shape == ModelShape(
        AutoModelForCausalLM.from_config(LLAMA).num_parameters(), 2, 64, 8, 2, 8, 160, True, 1000, False
    )
    with torch.device("meta"):
        assert shape_of(AutoModelForCausalLM.from_config(GPT2Config())) == ModelShape(
            124_439_808, 12, 768, 12, 12, 64, 3072, False, 50257, True, composed=True
        )


@pytest.mark.parametrize(("memory_of", "rows"), [(learner_memory, 16), (discriminator_memory, 48)])
def test_checkpointed_activations_are_planned(memory_of, rows: int) -> None:
    """Checkpointing saves each block's input instead of its activations, plus two blocks during backward."""
    small = ["learner.micro_batch_size=16", "task.prompt_tokens=4", "task.response_tokens=28"]
    small += ["discriminator.contrast_weight=1", "discriminator.frozen_layers=0"]  # three rows per rollout

    def planned(*overrides: str) -> float:
        config = load_config(None, [*small, *overrides])
        placement = plan_on(config, [Node(2.0)])
        return memory_of(config, generator_shape(config), placement, element=4).activations

    shape, tokens = generator_shape(load_config(None, [])), rows * 32
    block = block_activations(shape, tokens=tokens, length=32, element=4, fused_attention=False)
    saved = (shape.layers + 1) * block - (4 * shape.width * tokens * shape.layers + 2 * block)
    assert planned() - planned("learner.activation_checkpointing=true") == pytest.approx(saved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["built-in", "gelu_new", "llama"])
def test_activations_are_what_autograd_saves(kind: str, dtype: torch.dtype) -> None:
    """Within 5 %, without parameters and their casts. The final norm is added, since it is outside the blocks."""
    rows, length = 7, 32  # 224 tokens, a size that no parameter has
    match kind:
        case "built-in":
            model = build_tiny_gpt2(vocab_size=100, end_of_text_id=0, seed=0)
        case "gelu_new":
            settings = GPT2Config(vocab_size=100, n_embd=192, n_layer=4, n_head=3, bos_token_id=0, eos_token_id=0)
            model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager")
        case _:
            model = AutoModelForCausalLM.from_config(LLAMA, attn_implementation="sdpa")
    shapes = {tuple(weight.shape) for weight in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in shapes and tensor.is_floating_point():
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = torch.zeros(rows, length, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
    ):
        seen = torch.ones_like(tokens)
        hidden = model.eval().base_model(input_ids=tokens, attention_mask=seen, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    shape = shape_of(model)
    planned = shape.layers * block_activations(
        shape, tokens=rows * length, length=length, element=dtype.itemsize, fused_attention=kind == "llama"
    )
    last_norm = 4 * shape.width * rows * length * (2 if shape.gated else 1)
    assert sum(saved.values()) == pytest.approx(planned + last_norm, rel=0.05)


def test_the_plan_of_the_default_config(capsys) -> None:
    assert main(["plan", "--cpus-per-node", "2"]) == 0
    printed = capsys.readouterr().out
    assert "placement auto, bundles PACK" in printed
    assert "1 x learner rank, 1 x discriminator rank, 2 x" in printed
    assert "expected bottleneck: " in printed


def test_a_placement_that_does_not_fit_is_a_one_line_error(capsys) -> None:
    overrides = ["cluster.gpus_per_actor=1", "cluster.placement=separate", "rollout.num_workers=16"]
    assert main(["plan", *overrides, "--nodes", "2", "--gpus-per-node", "4", "--cpus-per-node", "32"]) == 1
    assert capsys.readouterr().err == (
        "error: the run asks for 18 GPUs (18 actors x 1) and the cluster has 8: lower cluster.gpus_per_actor or "
        "rollout.num_workers, or add nodes; the nearest plan that fits: rollout.num_workers=6\n"
    )


def test_models_without_blocks_are_rejected(capsys) -> None:
    lstm = [
        "model.generator=seqgan-lstm",
        "rollout.engine=transformers",
        "discriminator={architecture: cnn, dropout: 0, frozen_layers: 0}",
    ]
    assert main(["plan", *lstm, "discriminator.pooling=mean", "generator.reinforce.credit=sequence"]) == 1
    assert "rlgaf plan supports transformers with scalar heads only" in capsys.readouterr().err


def made(shape: ModelShape, *overrides: str, nodes: tuple[Node, ...], gpu_memory: float = 80 * GIB):
    config = load_config(None, overrides)
    rates = ASSUMED_GPU if config.cluster.gpus_per_actor else ASSUMED_CORE
    hardware = Hardware(nodes, gpu_memory)
    return estimate(config, shape, plan_on(config, nodes), hardware, rates, bfloat16=True)


NO_AVERAGE = "generator.average_decay=0"
GPT2 = ModelShape(124_439_808, 12, 768, 12, 12, 64, 3072, False, 50257, True)
GPU_NODES = (Node(64, 8), Node(64, 8))


def test_fsdp_ranks_hold_shards() -> None:
    overrides = ["cluster.gpus_per_actor=1", "learner.num_workers=4", "discriminator.num_workers=2", NO_AVERAGE]
    full = made(GPT2, *overrides, nodes=GPU_NODES).memory
    sharded = made(GPT2, *overrides, "learner.strategy=fsdp", nodes=GPU_NODES).memory
    assert sharded["learner"].optimizer == full["learner"].optimizer / 4 == 8 * GPT2.parameters / 4
    assert sharded["learner"].reference == GPT2.parameters  # four bytes, four shards
    assert sharded["discriminator"].weights == full["discriminator"].weights / 2


@pytest.mark.parametrize(
    ("overrides", "networks"),
    [
        (["warmup.sft.steps=5"], 1),
        (["warmup.sft.steps=5", "generator.reinforce.kl.reference=base"], 2),
        (["warmup.sft.steps=5", "reward.base_logprob=0.1"], 2),
        (["warmup.sft.steps=5", "reward.base_logprob=0.1", "generator.reinforce.kl.reference=base"], 2),
        (["warmup.sft.steps=0", "generator.reinforce.kl.reference=base"], 1),
    ],
)
def test_the_learner_holds_the_base_model_if_needed(overrides: list[str], networks: int) -> None:
    memory = made(GPT2, *overrides, NO_AVERAGE, nodes=(Node(8),)).memory
    assert memory["learner"].reference == 4 * networks * GPT2.parameters


def test_an_engines_kv_cache_fills_its_share_of_the_gpu() -> None:
    found = made(GPT2, "cluster.gpus_per_actor=1", "rollout.gpu_memory_utilization=0.5", nodes=GPU_NODES)
    assert found.memory["rollout"].total == pytest.approx(40 * GIB)
    per_token = 2 * 12 * 768 * 4
    assert found.kv_tokens == pytest.approx(found.memory["rollout"].kv_cache / per_token)
    on_cpu = made(GPT2, "rollout.kv_cache_mib=512", nodes=(Node(8),))
    assert on_cpu.memory["rollout"].kv_cache == 512 * MIB


COLOCATED = ["cluster.gpus_per_actor=1", "cluster.placement=colocate"]


def test_colocated_roles_add_up_unless_engines_sleep() -> None:
    awake = made(GPT2, *COLOCATED, nodes=(Node(8, 1),))
    assert awake.device_bytes() == pytest.approx(sum(memory.total for memory in awake.memory.values()))
    overlapping = made(GPT2, *COLOCATED, "schedule.mode=async", nodes=(Node(8, 1),))
    assert overlapping.device_bytes() == pytest.approx(sum(memory.total for memory in overlapping.memory.values()))


def test_a_sleeping_engine_shares_its_gpu_with_what_the_others_keep() -> None:
    """While it samples they keep weights, moments and references; while they compute it keeps its libraries."""
    asleep = [*COLOCATED, "rollout.sleep_level=1", "rollout.gpu_memory_utilization=0.1"]
    sampling = made(GPT2, *asleep, nodes=(Node(8, 1),))
    learner, discriminator, rollout = (sampling.memory[role] for role in ROLES)
    kept = sum(
        memory.weights + memory.optimizer + memory.reference + memory.runtime for memory in (learner, discriminator)
    )
    assert rollout.total == pytest.approx(8 * GIB)
    assert sampling.device_bytes() == pytest.approx(rollout.total + kept)
    long = ["task.response_tokens=900", "learner.micro_batch_size=256", "rollout.batch_size=256"]
    training = made(GPT2, *asleep, *long, nodes=(Node(8, 1),))
    learner, discriminator, rollout = (training.memory[role] for role in ROLES)
    assert training.device_bytes() == pytest.approx(learner.total + discriminator.total + rollout.runtime)


def test_a_push_to_sleeping_engines_overlaps_the_discriminators_update() -> None:
    found = replace(
        made(GPT2, *COLOCATED, "rollout.sleep_level=1", nodes=(Node(8, 1),)),
        memory={
            "learner": Memory(weights=1, activations=2),
            "discriminator": Memory(weights=1, activations=50),
            "rollout": Memory(weights=20, kv_cache=10, runtime=1),
        },
    )
    assert found.device_bytes() == 1 + 51 + 21


def test_actors_with_fractions_of_a_gpu_add_up_by_gpu() -> None:
    share = ["cluster.gpus_per_actor=0.25", "rollout.num_workers=2", "rollout.gpu_memory_utilization=0.49"]
    one = made(GPT2, *share, nodes=(Node(8, 1),))
    learner, discriminator, rollout = (one.memory[role].total for role in ROLES)
    assert one.device_bytes() == pytest.approx(learner + discriminator + 2 * rollout)
    assert one.device_bytes() > 80 * GIB
    halves = made(GPT2, *share, "cluster.gpus_per_actor=0.5", nodes=(Node(8, 2),))
    assert halves.device_bytes() == pytest.approx(max(learner + discriminator, 2 * rollout))


def test_an_actor_with_a_gpu_of_its_own() -> None:
    found = made(GPT2, "cluster.gpus_per_actor=1", nodes=GPU_NODES)
    assert found.device_bytes() == max(memory.total for memory in found.memory.values())


def test_the_object_store_sends_a_push_once_per_other_node() -> None:
    overrides = ["cluster.placement=spread", "rollout.num_workers=4", "weights.transfer=object_store"]
    found = made(GPT2, *overrides, nodes=(Node(4),) * 3)
    assert (found.push.sent, found.push.received) == (2 * 4 * GPT2.parameters, 4 * GPT2.parameters)


@pytest.mark.parametrize(
    ("overrides", "title", "gather"),
    [
        (["cluster.gpus_per_actor=0.33"], "CUDA IPC", "into each rank of the learner"),
        (["cluster.gpus_per_actor=0.33", "weights.transfer=ipc"], "CUDA IPC", "into each rank of the learner"),
        (COLOCATED, "CUDA IPC", "into each rank of the learner"),
        (["cluster.gpus_per_actor=1"], "NCCL broadcast", "into rank 0 of the learner"),
        (["cluster.gpus_per_actor=1", "schedule.mode=async"], "object store", "into rank 0 of the learner"),
        (["cluster.gpus_per_actor=1", "rollout.engine=transformers"], "object store", "into rank 0 of the learner"),
    ],
)
def test_the_plan_names_the_transfer_that_a_run_chooses(overrides: list[str], title: str, gather: str, capsys) -> None:
    assert main(["plan", *overrides, "--gpus-per-node", "4", "--cpus-per-node", "32"]) == 0
    printed = capsys.readouterr().out
    assert f"MiB), {title}" in printed.replace("GiB", "MiB") and gather in printed


def test_a_transfer_that_the_placement_does_not_allow_is_an_error(capsys) -> None:
    assert main(["plan", "cluster.gpus_per_actor=1", "weights.transfer=ipc", "--cpus-per-node", "32"]) == 1
    assert "weights.transfer=ipc is not possible here, rollout worker 0 is on a GPU" in capsys.readouterr().err


def test_the_plans_in_the_documentation_fit() -> None:
    folder = Path(__file__).parents[3] / "configs/scaling"
    for path, nodes in ((folder / "8_gpus.yaml", 1), (folder / "64_gpus.yaml", 8), (folder / "512_gpus.yaml", 64)):
        config = load_config(path, [])
        shape = json.loads((Path(config.model.generator) / "config.json").read_text())
        console = Console(record=True, quiet=False, file=open("/dev/null", "w"), width=120)  # noqa: SIM115
        plan(config, nodes=nodes, gpus_per_node=8, gpu_memory=80.0, cpus_per_node=128, console=console)
        printed = console.export_text()
        assert f"{shape['num_hidden_layers']} layers x {shape['hidden_size']:,}".replace(",", "") in printed.replace(
            ",", ""
        )
        assert "GiB: fits" in printed


def test_a_preset_with_a_shape_is_planned_from_any_directory(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    machines = ["--nodes", "8", "--gpus-per-node", "8", "--cpus-per-node", "128"]
    assert main(["plan", "scaling/64_gpus", *machines]) == 0
    assert "model: 32,763.4 M parameters" in capsys.readouterr().out
