"""What every engine asks of a request, before anything expensive happens."""

from __future__ import annotations

from collections.abc import Sequence

from rlgaf_ray.errors import UserError
from rlgaf_ray.types import Prompt, SamplingSettings


def check_length(num_tokens: int, limit: int | None, what: str) -> None:
    """Refuse a prompt and response of ``num_tokens`` together where ``what`` takes only ``limit`` (None: any number).

    Raises:
        UserError: with what is too small, its limit and the two config keys that set the length.
    """
    if limit is not None and num_tokens > limit:
        raise UserError(
            f"{what} takes {limit} tokens, but prompt and response have {num_tokens}: "
            f"lower task.prompt_tokens + task.response_tokens to at most {limit}"
        )


def check_request(
    prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int], *, limit: int | None, what: str
) -> None:
    """Hold a call of ``generate`` to the protocol: one seed a rollout, prompts that leave room for the response.

    Raises:
        UserError: the longest prompt and its response do not fit into ``limit`` tokens.
    """
    num_rollouts = len(prompts) * sampling.samples_per_prompt
    assert len(seeds) == num_rollouts, f"{len(seeds)} seeds for {num_rollouts} rollouts"
    assert sampling.temperature > 0, "temperature 0 has no distribution to learn from"
    assert all(len(prompt.token_ids) for prompt in prompts), "an empty prompt predicts nothing"
    longest = max((len(prompt.token_ids) + room(prompt, sampling) for prompt in prompts), default=0)
    check_length(longest, limit, what)


def room(prompt: Prompt, sampling: SamplingSettings) -> int:
    """How many tokens may answer this prompt."""
    return min(sampling.max_new_tokens, prompt.max_new_tokens or sampling.max_new_tokens)
