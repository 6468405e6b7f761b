"""Responses cut so that their lengths agree."""

from __future__ import annotations

from rlgaf_ray.types import Demonstration, Rollout

Response = Demonstration | Rollout


def on_one_prompt(first: Response, second: Response) -> tuple[Demonstration, Demonstration]:
    """Both responses after the first's prompt, cut to the shorter of them: every position faces one of its kind."""
    length = min(len(first.response_ids), len(second.response_ids))
    return (
        Demonstration(first.prompt_ids, first.response_ids[:length]),
        Demonstration(first.prompt_ids, second.response_ids[:length]),
    )
