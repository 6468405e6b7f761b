"""From the discriminator's logit to the generator's reward."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

RewardKind = Literal["logit", "probability_centered", "log_probability"]


def discriminator_reward(logits: Float[Tensor, " batch"], *, kind: RewardKind) -> Float[Tensor, " batch"]:
    """One reward per sequence from the logit that it is a demonstration; every kind rises with the logit.

    - logit: D, unbounded. At the optimum log p_real / p_fake, whose mean over rollouts is -KL(fake || real).
    - probability_centered: sigmoid(D) - 0.5, in (-0.5, 0.5), the paper's normalised variant. Flat where D is sure.
    - log_probability: log sigmoid(D), in (-inf, 0). Close to D where the discriminator sees through the fake, flat and
      close to zero where it is fooled. Always negative: without a baseline it makes longer sequences worse.

    RLGAF (arXiv 2305.06176), section 2.

    Shapes: [B] -> [B], same dtype. Left out: whitening, which needs running statistics (see ``advantages``).
    Raises ValueError for an unknown kind.
    """
    match kind:
        case "logit":
            return logits
        case "probability_centered":
            return logits.sigmoid() - 0.5
        case "log_probability":
            return logsigmoid(logits)
    raise ValueError(f"unknown reward kind {kind!r}: choose logit, probability_centered or log_probability")
