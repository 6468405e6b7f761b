"""SeqGAN's discriminator: a convolutional text classifier with a highway layer (arXiv 1609.05473, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import dropout, pad
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from rlgaf_ray.models.discriminator import DiscriminatorNetwork
from rlgaf_ray.types import SequenceBatch

# Window sizes and filters of SeqGAN's code, for sequences of 20 tokens: 1,720 filters in all.
SEQGAN_WINDOWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20)
SEQGAN_FILTERS = (100, 200, 200, 200, 200, 100, 100, 100, 100, 100, 160, 160)


class CnnConfig(PreTrainedConfig):
    """Sizes of ``CnnClassifier``; the defaults are SeqGAN's."""

    model_type = "rlgaf_cnn"

    def __init__(
        self,
        vocab_size: int = 5000,
        embedding_size: int = 64,
        window_sizes: Sequence[int] = SEQGAN_WINDOWS,
        num_filters: Sequence[int] = SEQGAN_FILTERS,
        dropout: float = 0.25,
        output_penalty: float = 0.2,
        pad_token_id: int | None = 0,
        **kwargs: Any,
    ) -> None:
        if len(window_sizes) != len(num_filters):
            raise ValueError(f"{len(window_sizes)} window_sizes need as many num_filters, got {len(num_filters)}")
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.window_sizes = list(window_sizes)
        self.num_filters = list(num_filters)
        self.dropout = dropout
        self.output_penalty = output_penalty
        super().__init__(pad_token_id=pad_token_id, **kwargs)  # type: ignore[call-arg]  # transformers takes more than it declares


class CnnClassifier(PreTrainedModel):
    """Embedding, convolutions of many widths, the maximum over time, a highway layer, dropout, one linear output.

    ::

        c_w = max_t relu(W_w . (e_t, ..., e_{t+w-1}) + b_w)        for every window size w
        z = T * relu(W_H c + b_H) + (1 - T) * c,  T = sigmoid(W_T c + b_T)
        logit = W_o dropout(z) + b_o

    SeqGAN (Yu et al. 2017, arXiv 1609.05473), section 3.3; highway layer: Srivastava et al. 2015 (arXiv 1505.00387).
    Windows start only at real tokens and extend into zeros after the last one. The output therefore does not depend on
    padding, and sequences may be shorter than the widest window.
    """

    config_class = CnnConfig
    base_model_prefix = "network"

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config)
        width = sum(config.num_filters)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.embedding_size, filters, window)
            for window, filters in zip(config.window_sizes, config.num_filters, strict=True)
        )
        self.highway = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        match module:
            case nn.Embedding():
                init.normal_(module.weight, mean=0.0, std=0.5)
            case nn.Conv1d():
                init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                init.zeros_(module.bias)
            case nn.Linear():
                init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
                # The gate starts nearly closed, so that the highway layer is close to the identity.
                init.constant_(module.bias, -2.0 if module is self.gate else 0.0)

    def forward(
        self, input_ids: Int[Tensor, "batch time"], attention_mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, " batch"]:
        """Return one logit per sequence, float32 [B]."""
        mask = attention_mask.bool()
        embedded = (self.embedding(input_ids) * mask[..., None]).transpose(1, 2)
        absent = ~mask[:, None]
        pooled = []
        for convolution, window in zip(self.convolutions, self.config.window_sizes, strict=True):
            features = convolution(pad(embedded, (0, window - 1)))
            pooled.append(features.masked_fill(absent, float("-inf")).amax(-1).relu())
        features = torch.cat(pooled, -1)
        gate = self.gate(features).sigmoid()
        features = gate * self.highway(features).relu() + (1.0 - gate) * features
        features = dropout(features, self.config.dropout, self.training)
        return self.score(features).squeeze(-1).float()


AutoConfig.register("rlgaf_cnn", CnnConfig)


class CnnDiscriminator(DiscriminatorNetwork):
    """``CnnClassifier`` as a discriminator network. It reads prompt and response."""

    network: CnnClassifier

    def __init__(self, network: CnnClassifier) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device = torch.device("cpu")) -> CnnDiscriminator:
        """Load an exported folder in eval mode."""
        network = CnnClassifier.from_pretrained(folder, use_safetensors=True)
        return cls(network).to(device).eval()

    def forward(self, sequences: SequenceBatch) -> Float[Tensor, " batch"]:
        """Return the logit that the response is a demonstration, float32 [B]."""
        return self.network(sequences.token_ids, sequences.attention_mask)

    def penalty(self) -> Float[Tensor, ""]:
        """Return the loss term ``output_penalty`` times half the squared L2 norm of the output layer, with its bias."""
        output = self.network.score
        return self.network.config.output_penalty * (output.weight.square().sum() + output.bias.square().sum()) / 2


def build_cnn(
    *,
    vocab_size: int,
    pad_token_id: int,
    seed: int,
    embedding_size: int = 64,
    window_sizes: Sequence[int] = SEQGAN_WINDOWS,
    num_filters: Sequence[int] = SEQGAN_FILTERS,
    dropout: float = 0.25,
) -> CnnDiscriminator:
    """Build SeqGAN's discriminator, initialised from ``seed``."""
    config = CnnConfig(
        vocab_size=vocab_size,
        embedding_size=embedding_size,
        window_sizes=window_sizes,
        num_filters=num_filters,
        dropout=dropout,
        pad_token_id=pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CnnDiscriminator(CnnClassifier(config)).eval()
