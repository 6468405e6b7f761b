"""Request validation shared by all engines."""

from __future__ import annotations

from collections.abc import Sequence

from rlgaf_ray.errors import UserError
from rlgaf_ray.types import Prompt, SamplingSettings


def check_length(num_tokens: int, limit: int | None, what: str) -> None:
    """Check that ``what`` (a model or engine) accepts ``num_tokens`` of prompt plus response; ``limit`` None: no limit.

    Raises:
        UserError: the limit is exceeded; names the config keys that set the length.
    """
    if limit is not None and num_tokens > limit:
        raise UserError(
            f"{what} takes at most {limit} tokens, but prompt and response have {num_tokens}: "
            f"lower task.prompt_tokens + task.response_tokens to at most {limit}"
        )


def check_request(
    prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int], *, limit: int | None, what: str
) -> None:
    """Validate the arguments of ``generate``: one seed per rollout, no empty prompt, lengths within ``limit`` tokens.

    Raises:
        UserError: the longest prompt plus its response exceeds ``limit``.
    """
    num_rollouts = len(prompts) * sampling.samples_per_prompt
    assert len(seeds) == num_rollouts, f"{len(seeds)} seeds for {num_rollouts} rollouts"
    assert sampling.temperature > 0, "greedy decoding (temperature 0) has no log-probs to learn from"
    assert all(len(prompt.token_ids) for prompt in prompts), "a prompt is empty: there is no token to predict from"
    longest = max((len(prompt.token_ids) + max_response_tokens(prompt, sampling) for prompt in prompts), default=0)
    check_length(longest, limit, what)


def max_response_tokens(prompt: Prompt, sampling: SamplingSettings) -> int:
    """Return the maximum response length for this prompt."""
    return min(sampling.max_new_tokens, prompt.max_new_tokens or sampling.max_new_tokens)
