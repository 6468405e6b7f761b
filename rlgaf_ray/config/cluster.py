"""The Ray cluster: resources per actor, placement, timeouts and failure budget."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlgaf_ray.config.section import NonNegative, NonNegativeRate, Positive, Rate, Section


class ClusterSection(Section):
    """The Ray cluster, and the CPUs and GPUs of each actor."""

    address: str | None = Field(
        None, description="Ray address; auto: a running cluster; null: RAY_ADDRESS if set, else a new local Ray"
    )
    num_cpus: Positive | None = Field(None, description="CPUs of the Ray started for this run; null: all")
    threads: Positive | None = Field(None, description="compute threads of each actor; null: chosen from the placement")
    placement: Literal["auto", "colocate", "separate", "spread"] = Field(
        "auto",
        description="auto: pack onto as few nodes as possible, sharing cores; colocate: one actor of each role on "
        "every GPU (on CPU: all on one node); separate: exclusive GPUs (or cores) for each actor; spread: consecutive "
        "actors on different nodes",
    )
    gpus_per_actor: NonNegativeRate = Field(
        0.0,
        description="GPUs per actor, a fraction to share one; 0: run on CPU; colocate divides each GPU equally",
    )
    cpus_per_actor: Rate | None = Field(None, description="CPUs per actor; null: an equal share")
    join_seconds: NonNegativeRate = Field(
        0.0,
        description="seconds to wait for nodes of an autoscaled cluster before the placement fails, at the start and "
        "after a node was lost; there at least min(timeout_seconds, 120)",
    )
    timeout_seconds: Rate = Field(
        600.0, description="seconds to wait for a single actor call before the actor counts as failed"
    )
    max_recoveries: NonNegative = Field(
        8,
        description="actor failures tolerated per recovery_window_seconds before the run aborts; a failed rollout "
        "worker is replaced, a failed learner or discriminator resumes the run from its last checkpoint",
    )
    recovery_window_seconds: Rate = Field(3600.0, description="seconds over which max_recoveries counts failures")
