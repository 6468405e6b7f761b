"""What the rollouts of an iteration look like, from their tokens alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlgaf_ray.evaluation.text import degenerate_share, distinct_n
from rlgaf_ray.types import Metrics, Rollout


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
    """Share of the responses that another prompt was given too, token by token."""
    prompts: dict[bytes, set[int]] = {}
    for rollout in rollouts:
        prompts.setdefault(rollout.response_ids.tobytes(), set()).add(rollout.prompt_id)
    return float(np.mean([len(prompts[rollout.response_ids.tobytes()]) > 1 for rollout in rollouts]))
