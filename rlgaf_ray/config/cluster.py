"""The cluster: what actors ask for, where they are placed, how many of their failures a run survives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlgaf_ray.config.section import NonNegative, NonNegativeRate, Positive, Rate, Section


class ClusterSection(Section):
    """The Ray cluster, and the CPUs and GPUs of each actor."""

    address: str | None = Field(
        None, description="Ray address, 'auto' for a running cluster; default: RAY_ADDRESS, else a Ray of its own"
    )
    num_cpus: Positive | None = Field(None, description="CPUs of the Ray that is started for the run; default: all")
    threads: Positive | None = Field(
        None, description="compute threads of each actor; default: measured rule of the placement"
    )
    placement: Literal["auto", "colocate", "separate", "spread"] = Field(
        "auto",
        description="auto: on as few nodes as possible, cores shared; colocate: one actor of each role on every GPU "
        "(or all on one node's cores); separate: own GPUs (or cores) each; spread: neighbours on different nodes",
    )
    gpus_per_actor: NonNegativeRate = Field(
        0.0,
        description="GPUs (a fraction shares one) that each actor asks for; 0: CPU; colocate shares each GPU equally",
    )
    cpus_per_actor: Rate | None = Field(None, description="CPUs that each actor asks for; default: an equal share")
    join_seconds: NonNegativeRate = Field(
        0.0, description="how long nodes of an autoscaled cluster may take to join before a plan is refused"
    )
    timeout_seconds: Rate = Field(600.0, description="longest wait for any one answer of an actor")
    max_recoveries: NonNegative = Field(
        8,
        description="actor failures tolerated per recovery_window_seconds: a rollout worker is replaced, and after the "
        "loss of a learner or discriminator the run resumes from its last checkpoint; the next failure ends the run",
    )
    recovery_window_seconds: Rate = Field(3600.0, description="the window of max_recoveries")
