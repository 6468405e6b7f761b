"""The table of algorithms for ``generator.algorithm``; their config sections state what each needs."""

from __future__ import annotations

from pathlib import Path

from rlgaf_ray.config.generator import AlgorithmName
from rlgaf_ray.config.schema import Config
from rlgaf_ray.training.algorithm import Algorithm, AlgorithmFactory
from rlgaf_ray.training.dpo import DirectPreference
from rlgaf_ray.training.gumbel import GumbelSoftmax
from rlgaf_ray.training.policy import Policy
from rlgaf_ray.training.ppo import PPO
from rlgaf_ray.training.raft import RejectionFineTuning
from rlgaf_ray.training.reinforce import Reinforce


def _reinforce(folder: Path, config: Config, policy: Policy, *, pad_token_id: int) -> Reinforce:
    return Reinforce(config.generator.reinforce)


def _seqgan(folder: Path, config: Config, policy: Policy, *, pad_token_id: int) -> Reinforce:
    return Reinforce(config.generator.seqgan)


ALGORITHMS: dict[AlgorithmName, AlgorithmFactory] = {
    "reinforce": _reinforce,
    "seqgan": _seqgan,
    "ppo": PPO,
    "gumbel": GumbelSoftmax,
    "dpo": DirectPreference,
    "raft": RejectionFineTuning,
}


def configured_algorithm(folder: Path, config: Config, policy: Policy, *, pad_token_id: int) -> Algorithm:
    """Build the algorithm named by ``generator.algorithm``; the default ``AlgorithmFactory``."""
    return ALGORITHMS[config.generator.algorithm](folder, config, policy, pad_token_id=pad_token_id)
