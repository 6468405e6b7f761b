"""The payloads that travel between the roles: frozen, picklable, with the shapes in comments.

Worked example, one prompt of three tokens answered with two::

    prompt = Prompt(prompt_id=7, token_ids=np.array([40, 3047, 262], np.int32))
    rollout = Rollout(
        prompt_id=7,
        prompt_ids=prompt.token_ids,
        response_ids=np.array([2646, 13], np.int32),
        behaviour_logprobs=np.array([-3.1, -0.7], np.float32),
        finish_reason="length",
        policy_version=12,
    )
    scored = ScoredRollout(rollout=rollout, score=0.42, discriminator_version=2, reward=0.42)
    batch = collate([scored], pad_token_id=0)  # rlgaf_ray.data.collate -> TrainBatch, B = 1, T = 5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    import torch

FinishReason = Literal["stop", "length"]
EvaluationPart = Literal["validation", "test"]
"""What settings are chosen by, and what final numbers alone are read from."""
EVALUATION_PARTS: tuple[EvaluationPart, ...] = get_args(EvaluationPart)
Metrics = dict[str, float]
PolicyNetwork = Literal["policy", "average", "rollout_policy"]
"""The trained network, its moving average for evaluation and export, the moving average that completes prefixes."""


class _Compact:
    """Pickles its arrays inside the message: Ray would ship each of these small ones as a buffer of its own, which
    costs more than the array (64 rollouts there and back: 4.3 ms so, 2.0 ms inside)."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        values = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]  # a dataclass
        packed = [(v.dtype.str, v.tobytes()) if isinstance(v, np.ndarray) else v for v in values]
        return _unpack, (type(self), *packed)


def _unpack(kind: type, *packed: Any) -> Any:
    return kind(*(np.frombuffer(v[1], v[0]) if isinstance(v, tuple) else v for v in packed))


@dataclass(frozen=True, slots=True, eq=False)
class Prompt(_Compact):
    """What the generator is asked to continue."""

    prompt_id: int  # row of the prompt's split: stable over runs
    token_ids: np.ndarray  # int32 [P]
    max_new_tokens: int | None = None  # where this prompt has less room than the sampling settings give


@dataclass(frozen=True, slots=True, eq=False)
class Demonstration(_Compact):
    """A real answer to a real prompt."""

    prompt_ids: np.ndarray  # int32 [P]
    response_ids: np.ndarray  # int32 [R]


Row = Mapping[str, Any]
"""A row of a data set by its columns, for reward functions; ``prompt``, if it has one, is text or messages."""


@dataclass(frozen=True, slots=True, eq=False)
class TextBlocks:
    """Text for next-token training: rows of equal length, padded on the right where a text is shorter."""

    token_ids: np.ndarray  # int32 [N, L]
    learned: np.ndarray  # bool [N, L], true on tokens that are predicted; never at position 0

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, rows: Any) -> TextBlocks:
        return TextBlocks(self.token_ids[rows], self.learned[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Rollout(_Compact):
    """One sampled answer, with what the engine knew when it sampled it."""

    prompt_id: int
    prompt_ids: np.ndarray  # int32 [P]
    response_ids: np.ndarray  # int32 [R], without the end-of-text token unless it was sampled
    behaviour_logprobs: np.ndarray  # float32 [R], of the distribution that was sampled from
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True, eq=False)
class ScoredRollout:
    """A rollout and the discriminator's raw logit for it (higher: more like a demonstration), then its reward."""

    rollout: Rollout
    score: float
    discriminator_version: int
    reward: float | None = None  # of all reward sources (loop/rewards.py), before whitening and clipping
    token_scores: np.ndarray | None = None  # float32 [R], the parts of the score that the response's tokens add
    action_values: np.ndarray | None = None  # float32 [R], in the reward's unit: SeqGAN's Q of every response token


@dataclass(frozen=True, slots=True, eq=False)
class SequenceBatch:
    """Prompts and responses side by side, padded on the right."""

    token_ids: torch.Tensor  # int64 [B, T]
    attention_mask: torch.Tensor  # int64 [B, T], 1 on prompt and response
    response_mask: torch.Tensor  # bool [B, T], true on response tokens only

    def to(self, device: torch.device) -> SequenceBatch:
        return SequenceBatch(self.token_ids.to(device), self.attention_mask.to(device), self.response_mask.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """What one generator update reads. Row order keeps the samples of one prompt adjacent."""

    sequences: SequenceBatch
    behaviour_logprobs: torch.Tensor  # float32 [B, T], zero outside the response
    scores: torch.Tensor  # float32 [B], raw discriminator logits
    group_size: int  # samples per prompt; B is a multiple of it
    token_scores: torch.Tensor | None = None  # float32 [B, T], zero outside the response; its sum over time is scores
    action_values: torch.Tensor | None = None  # float32 [B, T], zero outside the response, in the reward's unit
    num_read: torch.Tensor | None = None  # int64 [B], response tokens that the discriminator scored; default: all
    token_rewards: torch.Tensor | None = None  # float32 [B, T], zero outside the response: beside those of responses
    rewards: torch.Tensor | None = None  # float32 [B], of all reward sources, before whitening and clipping

    def to(self, device: torch.device) -> TrainBatch:
        return TrainBatch(
            self.sequences.to(device),
            self.behaviour_logprobs.to(device),
            self.scores.to(device),
            self.group_size,
            None if self.token_scores is None else self.token_scores.to(device),
            None if self.action_values is None else self.action_values.to(device),
            None if self.num_read is None else self.num_read.to(device),
            None if self.token_rewards is None else self.token_rewards.to(device),
            None if self.rewards is None else self.rewards.to(device),
        )


@dataclass(frozen=True, slots=True, eq=False)
class SamplingSettings:
    """How an engine samples. Defaults are untruncated: truncated log-probs bias importance ratios."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0  # the least probability of a token, as a share of the most probable one's; 0: all tokens
    samples_per_prompt: int = 1
    stop_at_end_of_text: bool = True  # False: end of text is masked, every response has max_new_tokens tokens


@dataclass(frozen=True, slots=True, eq=False)
class WeightUpdate:
    """One version of a network's weights, as plain arrays that many receivers can share.

    Of the discriminator's (Gumbel-softmax) the version is the number of its updates.

    bfloat16 has no numpy type: its bits travel as uint16, and ``dtypes`` names the real type.
    """

    policy_version: int
    arrays: Mapping[str, np.ndarray]  # every state_dict entry, tied copies included
    dtypes: Mapping[str, str]  # "float32", "bfloat16", "float16"
    part: int = 0  # of a version that comes in several updates, in order, each with some of the entries
    num_parts: int = 1

    @property
    def is_first(self) -> bool:
        return self.part == 0

    @property
    def is_last(self) -> bool:
        return self.part == self.num_parts - 1
