"""Data types passed between the actors: frozen, picklable dataclasses with the shapes in comments.

Example, a prompt of three tokens with a response of two::

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
"""The split for choosing settings (validation) and the split for final numbers only (test)."""
EVALUATION_PARTS: tuple[EvaluationPart, ...] = get_args(EvaluationPart)
MIN_TEXTS = 10  # of an evaluation, for self-BLEU and the two-sample tests: five folds of two
Metrics = dict[str, float]
PolicyNetwork = Literal["policy", "average", "rollout_policy"]
"""The trained policy, its moving average for evaluation and export, and SeqGAN's rollout policy (also an average)."""


class _Compact:
    """Pickles its arrays in-band: Ray ships every array as an out-of-band buffer, which costs more than these small
    arrays themselves (round trip of 64 rollouts: 4.3 ms out-of-band, 2.0 ms in-band)."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        values = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]  # a dataclass
        packed = [(v.dtype.str, v.tobytes()) if isinstance(v, np.ndarray) else v for v in values]
        return _unpack, (type(self), *packed)


def _unpack(kind: type, *packed: Any) -> Any:
    return kind(*(np.frombuffer(v[1], v[0]) if isinstance(v, tuple) else v for v in packed))


@dataclass(frozen=True, slots=True, eq=False)
class Prompt(_Compact):
    """A tokenized prompt."""

    prompt_id: int  # row in the prompt's split, the same in every run
    token_ids: np.ndarray  # int32 [P]
    max_new_tokens: int | None = None  # response limit of this prompt, if lower than that of SamplingSettings


@dataclass(frozen=True, slots=True, eq=False)
class Demonstration(_Compact):
    """A real response to a real prompt."""

    prompt_ids: np.ndarray  # int32 [P]
    response_ids: np.ndarray  # int32 [R]


Row = Mapping[str, Any]
"""A data set row by column name, for reward functions; a ``prompt`` column holds text or chat messages."""


@dataclass(frozen=True, slots=True, eq=False)
class TextBlocks:
    """Fixed-length rows for next-token training, right-padded where the text is shorter."""

    token_ids: np.ndarray  # int32 [N, L]
    learned: np.ndarray  # bool [N, L], true on tokens that enter the loss; always false at position 0

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, rows: Any) -> TextBlocks:
        return TextBlocks(self.token_ids[rows], self.learned[rows])

    def trimmed(self) -> TextBlocks:
        """Return the columns up to the last learned token of any row; only padding is beyond."""
        length = int(np.flatnonzero(self.learned.any(axis=0))[-1]) + 1
        return TextBlocks(self.token_ids[:, :length], self.learned[:, :length])


@dataclass(frozen=True, slots=True, eq=False)
class Rollout(_Compact):
    """One sampled response with its behaviour log-probs and policy version."""

    prompt_id: int
    prompt_ids: np.ndarray  # int32 [P]
    response_ids: np.ndarray  # int32 [R], ends with end of text only if that token was sampled
    behaviour_logprobs: np.ndarray  # float32 [R], under the distribution the engine sampled from
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True, eq=False)
class ScoredRollout:
    """A rollout with the discriminator's raw logit (higher: more like a demonstration) and its reward."""

    rollout: Rollout
    score: float
    discriminator_version: int
    reward: float | None = None  # over all reward sources (loop/rewards.py), before whitening and clipping
    token_scores: np.ndarray | None = None  # float32 [R], each response token's contribution to the score
    action_values: np.ndarray | None = None  # float32 [R], SeqGAN's Q of each response token, in reward units


@dataclass(frozen=True, slots=True, eq=False)
class SequenceBatch:
    """Prompts concatenated with their responses, right-padded."""

    token_ids: torch.Tensor  # int64 [B, T]
    attention_mask: torch.Tensor  # int64 [B, T], 1 on prompt and response
    response_mask: torch.Tensor  # bool [B, T], true on response tokens only

    def to(self, device: torch.device) -> SequenceBatch:
        """A copy on this device."""
        return SequenceBatch(self.token_ids.to(device), self.attention_mask.to(device), self.response_mask.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """The batch of one generator update. Samples of one prompt are in adjacent rows."""

    sequences: SequenceBatch
    behaviour_logprobs: torch.Tensor  # float32 [B, T], zero outside the response
    scores: torch.Tensor  # float32 [B], raw discriminator logits
    group_size: int  # samples per prompt; B is a multiple of it
    token_scores: torch.Tensor | None = None  # float32 [B, T], zero outside the response; sums to scores over time
    action_values: torch.Tensor | None = None  # float32 [B, T], zero outside the response, in reward units
    num_read: torch.Tensor | None = None  # int64 [B], response tokens that the discriminator scored; default: all
    token_rewards: torch.Tensor | None = None  # float32 [B, T], zero outside the response; added to the sequence reward
    rewards: torch.Tensor | None = None  # float32 [B], over all reward sources, before whitening and clipping

    def to(self, device: torch.device) -> TrainBatch:
        """A copy on this device."""
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
    """Sampling parameters of an engine. Untruncated by default: truncation biases importance ratios."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0  # the least probability of a token, as a share of the most probable one's; 0: all tokens
    samples_per_prompt: int = 1
    stop_at_end_of_text: bool = True  # False: end of text is masked and every response has max_new_tokens tokens


@dataclass(frozen=True, slots=True, eq=False)
class WeightUpdate:
    """One version of a network's weights as numpy arrays, which all receivers on a host can share.

    For the discriminator (Gumbel-softmax) the version counts its updates.

    numpy has no bfloat16: its bits are stored as uint16, and ``dtypes`` names the actual type.
    """

    policy_version: int
    arrays: Mapping[str, np.ndarray]  # every state_dict entry, tied copies included
    dtypes: Mapping[str, str]  # "float32", "bfloat16", "float16"
    part: int = 0  # index of this chunk; the chunks of a version are sent in order, each with some of the entries
    num_parts: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the first part of its version."""
        return self.part == 0

    @property
    def is_last(self) -> bool:
        """Whether this is the last part of its version."""
        return self.part == self.num_parts - 1
