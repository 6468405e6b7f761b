"""What every engine asks of a model's config and of a request, before anything expensive happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlgaf_ray.types import Prompt, SamplingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def end_of_text_ids(config: PreTrainedConfig) -> list[int]:
    """The token ids that end a text, from the model's config.

    Raises:
        ValueError: the config names none.
    """
    token_ids = config.get_text_config().eos_token_id
    if token_ids is None:
        raise ValueError(f"{config.name_or_path or 'the model'} has no end-of-text token: set eos_token_id in its config.json")
    return [token_ids] if isinstance(token_ids, int) else list(token_ids)


def check_length(num_tokens: int, config: PreTrainedConfig) -> None:
    """Refuse sequences (prompt and response, in tokens) longer than the model has positions.

    Raises:
        ValueError: with the model, its limit and the two config keys that set the length.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and num_tokens > limit:
        raise ValueError(
            f"{config.name_or_path or 'the model'} has {limit} positions, but prompt and response need {num_tokens}: "
            f"lower task.prompt_tokens + task.response_tokens to at most {limit}"
        )


def check_request(
    prompts: Sequence[Prompt], sampling: SamplingSettings, seeds: Sequence[int], *, max_model_len: int
) -> None:
    """Hold a call of ``generate`` to the protocol: one seed a rollout, prompts that leave room for the answer.

    Raises:
        ValueError: a prompt and its answer do not fit into ``max_model_len`` tokens.
    """
    num_rollouts = len(prompts) * sampling.samples_per_prompt
    assert len(seeds) == num_rollouts, f"{len(seeds)} seeds for {num_rollouts} rollouts"
    assert sampling.temperature > 0, "temperature 0 has no distribution to learn from"
    longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    if longest + sampling.max_new_tokens > max_model_len:
        raise ValueError(
            f"a prompt of {longest} tokens and a response of {sampling.max_new_tokens} do not fit into the engine's "
            f"{max_model_len}: lower task.prompt_tokens or task.response_tokens"
        )
