"""Seeds, selection and token-level metrics of an iteration's rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlgaf_ray.config.schema import Config
from rlgaf_ray.engines.seeds import rollout_seed
from rlgaf_ray.evaluation.text import degenerate_share, distinct_n
from rlgaf_ray.types import Metrics, Rollout, ScoredRollout


def rollout_seeds(config: Config, iteration: int, count: int) -> list[int]:
    """Return a seed for each rollout of the iteration, independent of the worker that samples it."""
    return [rollout_seed(config.run.seed, iteration, index) for index in range(count)]


def without_liked(scored: Sequence[ScoredRollout], share: float) -> list[Rollout]:
    """Select the rollouts of a discriminator update, in order, leaving out the ``share`` with the highest scores.

    A rollout that looks like a demonstration may be good (RLGAF, section 4.4). At least one is kept.
    """
    num_kept = max(1, len(scored) - round(share * len(scored)))
    order = np.argsort([item.score for item in scored], kind="stable")
    return [scored[row].rollout for row in np.sort(order[:num_kept])]


def rollout_metrics(rollouts: Sequence[Rollout], seconds: float) -> Metrics:
    responses = [rollout.response_ids for rollout in rollouts]
    lengths = [len(response) for response in responses]
    return {
        "rollout/response_tokens": float(np.mean(lengths)),
        "rollout/distinct_2": distinct_n(responses, 2),
        "rollout/degenerate_share": degenerate_share(responses),
        "rollout/identical_share": identical_share(rollouts),
        "rollout/stopped_share": float(np.mean([rollout.finish_reason == "stop" for rollout in rollouts])),
        "rollout/tokens_per_second": sum(lengths) / seconds,
    }


def identical_share(rollouts: Sequence[Rollout]) -> float:
    """Share of responses that are identical, token by token, to a response to another prompt."""
    prompts: dict[bytes, set[int]] = {}
    for rollout in rollouts:
        prompts.setdefault(rollout.response_ids.tobytes(), set()).add(rollout.prompt_id)
    return float(np.mean([len(prompts[rollout.response_ids.tobytes()]) > 1 for rollout in rollouts]))
