"""A generative discriminator: a causal LM is asked whether a response is real, and scores by its verdict's log-odds."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgaf_ray.errors import UserError
from rlgaf_ray.models.discriminator import DiscriminatorNetwork
from rlgaf_ray.models.families import check_output_layer
from rlgaf_ray.models.generator import gathered_hidden, load_generator
from rlgaf_ray.types import SequenceBatch


class GenerativeCritic(DiscriminatorNetwork):
    """Scores prompt x and response y, followed by the question q, with the two verdict tokens::

        logit = log p(real | x, y, q) - log p(generated | x, y, q)

    Binary cross-entropy of the logit equals cross-entropy over the two verdicts. A generative verifier (Zhang et al.
    2024, arXiv 2408.15240) without a rationale. The network's config stores the ids of question and verdicts.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network.eval()

    @classmethod
    def load(
        cls, folder: str | Path, *, trust_remote_code: bool = False, device: torch.device = torch.device("cpu")
    ) -> GenerativeCritic:
        """Load an exported folder."""
        return cls(load_generator(folder, trust_remote_code=trust_remote_code, device=device))

    @classmethod
    def new(
        cls,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        question: str,
        verdicts: tuple[str, str],
        trust_remote_code: bool = False,
        device: torch.device = torch.device("cpu"),
    ) -> GenerativeCritic:
        """Create a critic from a causal LM's folder.

        Raises ``UserError`` like ``encode_question``, or if the model's logits are not linear.
        """
        critic = cls.load(folder, trust_remote_code=trust_remote_code, device=device)
        check_output_layer(critic.network, "discriminator.architecture=generative", "choose another architecture")
        question_ids, verdict_ids = encode_question(tokenizer, question, verdicts)
        critic.network.config.update({"rlgaf_question": question_ids, "rlgaf_verdicts": verdict_ids})
        return critic

    def forward(self, sequences: SequenceBatch) -> Float[Tensor, " batch"]:
        """Return the verdict's log-odds, float32 [B]. The head is not autocast: see ``ScalarModel.head``."""
        hidden = gathered_hidden(self.network, self.ask(sequences))
        head = self.network.get_output_embeddings()
        with torch.autocast(hidden.device.type, enabled=False):
            logits = head(hidden.to(head.weight.dtype))
        real, generated = self.network.config.rlgaf_verdicts
        return (logits[:, real] - logits[:, generated]).float()

    def ask(self, sequences: SequenceBatch) -> SequenceBatch:
        """Append the question and a verdict token to each row: [B, T']. ``response_mask`` marks only the verdict."""
        config = self.network.config
        ids = torch.tensor([*config.rlgaf_question, config.rlgaf_verdicts[0]], device=sequences.token_ids.device)
        places = sequences.attention_mask.sum(1, keepdim=True) + torch.arange(len(ids), device=ids.device)
        longer = (0, len(ids))
        mask = pad(sequences.attention_mask, longer).scatter(1, places, 1)
        return SequenceBatch(
            token_ids=pad(sequences.token_ids, longer).scatter(1, places, ids.expand(len(places), -1)),
            attention_mask=mask,
            response_mask=torch.zeros_like(mask, dtype=torch.bool).scatter(1, places[:, -1:], True),
        )

    @property
    def added_tokens(self) -> int:
        return len(self.network.config.rlgaf_question) + 1

    def train(self, mode: bool = True) -> GenerativeCritic:
        """Keep the network's dropout off, like ``ScalarModel.train``."""
        super().train(mode)
        self.network.eval()
        return self


def encode_question(
    tokenizer: PreTrainedTokenizerBase, question: str, verdicts: tuple[str, str]
) -> tuple[list[int], list[int]]:
    """Return the token ids of the question and of both verdicts.

    Raises:
        UserError: the question is empty, a verdict is not a single token, or both verdicts are the same.
    """
    question_ids = tokenizer.encode(question, add_special_tokens=False)
    if not question_ids:
        raise UserError("discriminator.question is empty: give a question about the response")
    encoded = [tokenizer.encode(verdict, add_special_tokens=False) for verdict in verdicts]
    for verdict, ids in zip(verdicts, encoded, strict=True):
        if len(ids) != 1:
            raise UserError(
                f"discriminator.verdicts must be single tokens, but {verdict!r} is {len(ids)} tokens of this model's "
                "tokenizer: choose another word, with or without a space before it"
            )
    (real,), (generated,) = encoded
    if real == generated:
        raise UserError(f"discriminator.verdicts are both {verdicts[0]!r}: give two different ones")
    return question_ids, [real, generated]
