"""Keys of several sections that must fit together: engines, transfer of weights, schedule, devices; adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlgaf_ray.config.schema import Config


def check_engines(config: Config) -> None:
    """Raise ``ValueError`` for what an engine is asked that its kind or its device cannot do."""
    rollout = config.rollout
    if config.weights.mid_flight and rollout.engine != "vllm_async":
        raise ValueError("weights.mid_flight=true needs an engine that takes them: set rollout.engine=vllm_async")
    if config.weights.mid_flight and config.schedule.mode == "sync":
        raise ValueError(
            "weights.mid_flight=true is for rollouts that are made while weights arrive, and schedule.mode=sync makes "
            "none then: set schedule.mode=async, or weights.mid_flight=false"
        )
    if config.weights.mid_flight and config.generator.average_decay > 0:
        raise ValueError(
            "weights.mid_flight=true would give rollouts the moving average that is evaluated beside them: "
            "set generator.average_decay=0, or weights.mid_flight=false"
        )
    if config.schedule.mode == "async" and rollout.sleep_level > 0:
        raise ValueError(
            f"rollout.sleep_level={rollout.sleep_level} is for engines that wait, and with schedule.mode=async they "
            "sample all the time: set rollout.sleep_level=0, or schedule.mode=sync"
        )
    if config.weights.transfer in ("nccl", "ipc") and config.schedule.mode == "async" and not config.weights.mid_flight:
        raise ValueError(
            f"weights.transfer={config.weights.transfer} needs learner and engines at the same moment, and with "
            "schedule.mode=async engines take weights each in its own time: set weights.mid_flight=true, "
            "or weights.transfer=auto"
        )
    if rollout.engine == "transformers" and rollout.tensor_parallel_size > 1:
        raise ValueError("rollout.engine=transformers is on one device: set rollout.tensor_parallel_size=1")
    if rollout.engine == "transformers" and config.weights.transfer in ("nccl", "ipc"):
        raise ValueError(
            f"weights.transfer={config.weights.transfer} is vLLM's: set rollout.engine=vllm, or weights.transfer=auto"
        )
    on_cpu = config.cluster.gpus_per_actor == 0
    if on_cpu and rollout.sleep_level > 0:
        raise ValueError(
            f"rollout.sleep_level={rollout.sleep_level} gives up a GPU's memory, and the engines are on CPU: "
            "set rollout.sleep_level=0, or cluster.gpus_per_actor"
        )
    if on_cpu and config.weights.transfer in ("nccl", "ipc"):
        raise ValueError(
            f"weights.transfer={config.weights.transfer} is between GPUs, and the run is on CPU: "
            "set weights.transfer=auto, or cluster.gpus_per_actor"
        )


def check_adapters(config: Config) -> None:
    """Raise ``ValueError`` for what needs weights that ``model.lora`` freezes, or a second copy of them."""
    if config.model.lora.rank == 0:
        return
    missing = {
        "learner.strategy=ddp": config.learner.strategy == "ddp",
        "generator.average_decay=0": config.generator.average_decay == 0,
        "generator.seqgan.rollout_policy_rate=0": config.generator.seqgan.rollout_policy_rate == 0,
        "discriminator.architecture=generator": config.discriminator.traits.transformer,
        "a model.generator that is a transformer": config.model.generator != "seqgan-lstm",
    }
    for key in (key for key, met in missing.items() if not met):
        raise ValueError(f"model.lora.rank={config.model.lora.rank} trains adapters of frozen networks: set {key}")
