"""SeqGAN's Monte-Carlo search for language models: what the discriminator thinks of where a prefix leads.

For every response, prefixes are completed by the current policy (the roll-out policy), the completions are scored, and
their mean reward is the action value of the prefix's last token (RLGAF, section 2.1; SeqGAN, Yu et al. 2017, arXiv
1609.05473, eq. 4)::

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
    """Rewarded rollouts with Monte-Carlo action values: their prefixes completed by the policy, or its moving average.

    The engines then hold the average until the weights after the update are pushed.
    """
    settings = config.generator.seqgan
    if settings.rollout_policy_rate > 0:
        roles.push_weights(iteration - 1, network="rollout_policy")()
    rollouts = [item.rollout for item in scored]
    parts = prefixes(rollouts, stride=settings.stride, max_response_tokens=config.task.response_tokens)
    # Seeds of the rollouts come first: the completions' own are those after them.
    num_completions = len(parts) * settings.num_completions
    seeds = rollout_seeds(config, iteration, len(rollouts) + num_completions)[len(rollouts) :]
    sampling = sampling_settings(config, samples_per_prompt=settings.num_completions)
    completions = roles.generate(parts, sampling, seeds)
    completed = rewards(roles.score(whole_responses(rollouts, completions)), iteration).scored
    return with_action_values(
        scored,
        np.array([item.reward for item in scored], np.float32),
        np.array([item.reward for item in completed], np.float32),
        stride=settings.stride,
        num_completions=settings.num_completions,
    )


def evaluated_positions(num_tokens: int, stride: int) -> list[int]:
    """Lengths of the prefixes that are completed: stride, 2 * stride, ..., below the whole length."""
    return list(range(stride, num_tokens, stride))


def prefixes(rollouts: Sequence[Rollout], *, stride: int, max_response_tokens: int) -> list[Prompt]:
    """Every prefix to be completed, as a prompt with the room that is left: rollout by rollout, short ones first."""
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
    """Completions of ``prefixes(rollouts)`` as responses to the rollouts' own prompts, for the discriminator."""
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
    """The rollouts with Q of every token, float32 [R] each.

    ``rewards``: of the rollouts, [B]. ``completion_rewards``: of their completions, in the order of ``prefixes`` with
    ``num_completions`` of each. With a stride above 1 a token has the value of the first evaluated prefix that holds
    it: the tokens of one stride are credited together.
    """
    means = completion_rewards.reshape(-1, num_completions).mean(1)
    result, start = [], 0
    for item, reward in zip(scored, rewards, strict=True):
        num_tokens = len(item.rollout.response_ids)
        end = start + len(evaluated_positions(num_tokens, stride))
        values = np.append(means[start:end], reward).astype(np.float32)
        result.append(replace(item, action_values=values.repeat(stride)[:num_tokens]))
        start = end
    assert start == len(means), "completions and rollouts do not belong together"
    return result
