"""A language model with a scalar head: the discriminator, and PPO's critic."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlgaf_ray.errors import UserError
from rlgaf_ray.models.built_in import model_source
from rlgaf_ray.models.discriminator import DiscriminatorNetwork
from rlgaf_ray.models.families import attention_for, scoring_class
from rlgaf_ray.models.folder import read_config
from rlgaf_ray.models.generator import embedding_matrix
from rlgaf_ray.objectives.rewards import at_the_end
from rlgaf_ray.types import SequenceBatch

Pooling = Literal["mean", "last"]


class ScalarModel(DiscriminatorNetwork):
    """The generator's architecture with a scalar head instead of the LM head (RLGAF, section 2).

    ``token_scores`` is the head's output at every position (a critic's values). ``forward`` pools it over the response
    (a discriminator's logit): ``mean`` averages, which equals the head of the mean hidden state; ``last`` takes the
    last response token. ``AutoModelForSequenceClassification`` takes the last token that is not padding: the same one,
    unless the response ends with the padding token, as with end of text as padding.
    """

    def __init__(self, network: PreTrainedModel, *, pooling: Pooling = "mean") -> None:
        super().__init__()
        if not isinstance(getattr(network, "score", None), nn.Linear):
            raise UserError(
                f"{type(network).__name__} has no linear 'score' head: use a decoder such as GPT-2, Llama or Qwen"
            )
        self.network = network.eval()
        self.pooling = pooling

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        pooling: Pooling,
        pad_token_id: int,
        seed: int,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        device: torch.device = torch.device("cpu"),
    ) -> ScalarModel:
        """Load a causal LM's folder, with a head initialised from ``seed``, or an exported folder."""
        config = read_config(folder, trust_remote_code=trust_remote_code)
        config.num_labels = 1
        config.get_text_config().pad_token_id = pad_token_id
        model_class: Any = scoring_class(config) or AutoModelForSequenceClassification
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, found = model_class.from_pretrained(
                model_source(folder),
                config=config,
                dtype=getattr(torch, dtype),
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                attn_implementation=attention_for(config, device),
                output_loading_info=True,
            )
        if missing := sorted(name for name in found["missing_keys"] if not name.startswith("score.")):
            raise UserError(f"{folder} has no {missing[0]}, which {type(network).__name__} needs")
        return cls(network, pooling=pooling).to(device).eval()

    def token_scores(self, sequences: SequenceBatch) -> Float[Tensor, "batch time"]:
        """Return the head's output at every position, float32 [B, T]."""
        hidden = self.network.base_model(
            input_ids=sequences.token_ids, attention_mask=sequences.attention_mask, use_cache=False
        ).last_hidden_state
        return self.head(hidden)

    def forward(self, sequences: SequenceBatch) -> Float[Tensor, " batch"]:
        """Return the logit that the response is a demonstration, float32 [B]."""
        return self.pool(self.token_scores(sequences), sequences.response_mask)

    def token_logits(self, sequences: SequenceBatch) -> Float[Tensor, "batch time"]:
        """Return each response token's share of the logit, float32 [B, T], zero elsewhere; it sums to ``forward``.

        The network is causal: with ``mean`` a token's share depends only on the tokens up to it. With ``last`` the last
        response token has all of it.
        """
        scores, mask = self.token_scores(sequences), sequences.response_mask
        if self.pooling == "mean":
            return scores * mask / mask.sum(1, keepdim=True).clamp(min=1)
        return at_the_end(self.pool(scores, mask), mask)

    def embedded_logits(
        self,
        embeddings: Float[Tensor, "batch time width"],
        *,
        attention_mask: Int[Tensor, "batch time"],
        position_ids: Int[Tensor, "batch time"],
        response_mask: Bool[Tensor, "batch time"],
    ) -> Float[Tensor, " batch"]:
        """Compute ``forward`` for tokens given as rows, or mixtures of rows, of ``embedding``: float32 [B]."""
        hidden = self.network.base_model(
            inputs_embeds=embeddings, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        return self.pool(self.head(hidden), response_mask)

    def embed(self, sequences: SequenceBatch) -> Float[Tensor, "batch time width"]:
        """Return the input embedding of every token, without position embeddings: [B, T, W]."""
        return self.network.get_input_embeddings()(sequences.token_ids)

    def logits_of(
        self, sequences: SequenceBatch, embeddings: Float[Tensor, "batch time width"]
    ) -> Float[Tensor, " batch"]:
        """Compute ``forward`` with modified input embeddings: float32 [B]."""
        positions = torch.arange(sequences.token_ids.shape[1], device=embeddings.device)
        return self.embedded_logits(
            embeddings,
            attention_mask=sequences.attention_mask,
            position_ids=positions.expand_as(sequences.token_ids),
            response_mask=sequences.response_mask,
        )

    def head(self, hidden: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time"]:
        """Map hidden states to scores, at least float32 [B, T].

        The head is exempt from autocast: bfloat16 would add an error of 0.009 to rewards whose spread is 1.5.
        """
        score = self.network.score
        with torch.autocast(hidden.device.type, enabled=False):
            scores = score(hidden.to(score.weight.dtype)).squeeze(-1)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    @property
    def embedding(self) -> Float[Tensor, "vocabulary width"]:
        return embedding_matrix(self.network)

    def pool(self, scores: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
        """Pool scores to one per response, [B]. A response without tokens gets 0 (mean) or the first score (last)."""
        if self.pooling == "mean":
            return (scores * mask).sum(1) / mask.sum(1).clamp(min=1)
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, positions, -1).amax(1).clamp(min=0)
        return scores.gather(1, last[:, None]).squeeze(1)

    def train(self, mode: bool = True) -> ScalarModel:
        """Keep the network's dropout off, so that scoring and training use the same function.

        ``discriminator.dropout`` turns it on separately.
        """
        super().train(mode)
        self.network.eval()
        return self

    def export(self, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """Export the network with the pooling in its config, as ``rlgaf_pooling``."""
        self.network.config.rlgaf_pooling = self.pooling
        super().export(folder, state)
