"""SeqGAN's Monte-Carlo search: estimates the action value of every token from completions of its prefix.

The current policy (the roll-out policy) completes prefixes of every response; the mean reward of the completions is the
action value of the prefix's last token (RLGAF, section 2.1; SeqGAN, Yu et al. 2017, arXiv 1609.05473, eq. 4)::

    Q(y_1:t-1, y_t) = mean_n R(MC_n(y_1:t))   for t < T        Q(y_1:T-1, y_T) = R(y_1:T)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlgaf_ray.config.schema import Config
from rlgaf_ray.engines.build import sampling_settings
from rlgaf_ray.loop.rewards import Rewards
from rlgaf_ray.loop.roles import Roles
from rlgaf_ray.loop.rollouts import rollout_seeds
from rlgaf_ray.types import Prompt, Rollout, ScoredRollout


def search(
    roles: Roles, config: Config, rewards: Rewards, scored: Sequence[ScoredRollout], iteration: int
) -> list[ScoredRollout]:
    """Add Monte-Carlo action values to rewarded rollouts; the policy or its moving average completes the prefixes.

    With the average, the engines hold it until the next weight push.
    """
    settings = config.generator.seqgan
    if settings.rollout_policy_rate > 0:
        roles.push_weights(iteration - 1, network="rollout_policy")()
    rollouts = [item.rollout for item in scored]
    prompts = prefixes(rollouts, stride=settings.stride, max_response_tokens=config.task.response_tokens)
    # the iteration's first seeds belong to its rollouts, the next ones to the completions
    num_completions = len(prompts) * settings.num_completions
    seeds = rollout_seeds(config, iteration, len(rollouts) + num_completions)[len(rollouts) :]
    sampling = sampling_settings(config, samples_per_prompt=settings.num_completions)
    completions = roles.generate(prompts, sampling, seeds)
    completed = rewards(roles.score(whole_responses(rollouts, completions)), iteration).scored
    return with_action_values(
        scored,
        np.array([item.reward for item in scored], np.float32),
        np.array([item.reward for item in completed], np.float32),
        stride=settings.stride,
        num_completions=settings.num_completions,
    )


def evaluated_positions(num_tokens: int, stride: int) -> list[int]:
    """Lengths of the completed prefixes: stride, 2 * stride, ..., below ``num_tokens``."""
    return list(range(stride, num_tokens, stride))


def prefixes(rollouts: Sequence[Rollout], *, stride: int, max_response_tokens: int) -> list[Prompt]:
    """Return every prefix to complete, with its remaining token budget: per rollout, shortest first."""
    return [
        Prompt(
            prompt_id=row,
            token_ids=np.concatenate([rollout.prompt_ids, rollout.response_ids[:length]]),
            max_new_tokens=max_response_tokens - length,
        )
        for row, rollout in enumerate(rollouts)
        for length in evaluated_positions(len(rollout.response_ids), stride)
    ]


def whole_responses(rollouts: Sequence[Rollout], completions: Sequence[Rollout]) -> list[Rollout]:
    """Join completions of ``prefixes(rollouts)`` with their prefixes into responses to the original prompts."""
    whole = []
    for completion in completions:
        source = rollouts[completion.prompt_id]
        num_prompt = len(source.prompt_ids)
        whole.append(
            replace(
                completion,
                prompt_id=source.prompt_id,
                prompt_ids=source.prompt_ids,
                response_ids=np.concatenate([completion.prompt_ids[num_prompt:], completion.response_ids]),
            )
        )
    return whole


def with_action_values(
    scored: Sequence[ScoredRollout],
    rewards: np.ndarray,
    completion_rewards: np.ndarray,
    *,
    stride: int,
    num_completions: int,
) -> list[ScoredRollout]:
    """Set the action values Q of every token of the rollouts, float32 [R] each.

    ``rewards``: [B], of the rollouts. ``completion_rewards``: of their completions, in the order of ``prefixes``, with
    ``num_completions`` each. With a stride above 1, a token has the value of the first evaluated prefix that contains
    it, so the tokens of a stride share their credit.
    """
    means = completion_rewards.reshape(-1, num_completions).mean(1)
    result, start = [], 0
    for item, reward in zip(scored, rewards, strict=True):
        num_tokens = len(item.rollout.response_ids)
        end = start + len(evaluated_positions(num_tokens, stride))
        values = np.append(means[start:end], reward).astype(np.float32)
        result.append(replace(item, action_values=values.repeat(stride)[:num_tokens]))
        start = end
    assert start == len(means), "completions do not match the rollouts"
    return result
