"""The discriminator's losses: pointwise ones, which label each sequence, and a pairwise one, which ranks two."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu, softplus

from rlgaf_ray.objectives.policy import TensorMetrics

DiscriminatorLoss = Literal[
    "binary_cross_entropy", "least_squares", "hinge", "positive_unlabelled", "bradley_terry", "contrastive"
]
PAIRED = ("bradley_terry", "contrastive")
"""Losses that compare the answers to one prompt: row i of every set belongs together."""


def discriminator_loss(
    real_logits: Float[Tensor, " real"],
    fake_logits: Float[Tensor, " fake"],
    *,
    kind: DiscriminatorLoss = "binary_cross_entropy",
    contrast_logits: Float[Tensor, " contrast"] | None = None,
    contrast_weight: float = 0.0,
    label_smoothing_real: float = 0.0,
    label_smoothing_fake: float = 0.0,
    positive_share: float = 0.0,
    clipped: bool | None = None,
) -> tuple[Float[Tensor, ""], TensorMetrics]:
    """Demonstrations above rollouts and, weighted, above demonstrations of the unwanted kind.

    Pointwise, with a term r(D) for what is real and f(D) for what is not::

        loss = mean r(D(real)) / 2 + (mean f(D(fake)) + w * mean f(D(contrast))) / (2 (1 + w))

    Real text is half of the loss whatever w is, so that a logit of 0 means "cannot tell".

    - binary_cross_entropy: r = softplus(-D) = -log sigmoid(D), f = softplus(D); without contrast the two are averaged,
      as in RLGAF (arXiv 2305.06176), section 2. The optimum is D = log p_real / p_fake (Goodfellow et al. 2014, arXiv
      1406.2661, proposition 1), and with contrast log p_real (1 + w) / (p_fake + w p_contrast): what is unwanted keeps
      a low score even once the rollouts match the demonstrations. With label smoothing the labels are 1 - a and b in
      place of 1 and 0: r = softplus(-D) + a D, f = softplus(D) - b D. The optimum, log ((1 - a) p_real + b p_fake) /
      (a p_real + (1 - b) p_fake), lies between log b / (1 - b) and log (1 - a) / a: a sure discriminator is held back.
      One-sided, b = 0: Salimans et al. 2016 (arXiv 1606.03498), section 3.4; with b > 0, they warn, rollouts where
      there is nothing real have no reason to move.
    - least_squares: r = (D - 1)^2, f = D^2 (Mao et al. 2017, arXiv 1611.04076, eq. 2 with a = 0, b = 1). The optimum is
      D = p_real / (p_real + p_fake), a score between 0 and 1.
    - hinge: r = max(0, 1 - D), f = max(0, 1 + D) (Lim & Ye 2017, arXiv 1705.02894). Sequences beyond the margin teach
      nothing.
    - positive_unlabelled: r and f of binary cross-entropy, but a share pi (``positive_share``) of the rollouts counts
      as real: in place of mean f(D(fake)) stands max(0, R), R = (mean f(D(fake)) - pi * mean f(D(real))) / (1 - pi),
      the non-negative risk of Kiryo et al. 2017 (arXiv 1703.00593, eq. 6). A rollout that could be a demonstration is
      not called fake (RLGAF, section 4.4). The optimum is D = log p_real / p_bad with p_fake = pi * p_real +
      (1 - pi) * p_bad. Where R is negative, demonstrations are learned by heart, and the term is left out; algorithm 1
      of the paper, which climbs there, is not followed. ``clipped`` says whether R is negative where these logits are a
      part of the batch; None: by these logits.

    Pairwise, where row i of every set answers the same prompt::

        bradley_terry:  loss = (d(fake, real) + w * d(contrast, real)) / (1 + w)
                        d(a, b) = mean_i softplus(D(a_i) - D(b_i))

    GAD (arXiv 2511.10643): minus log sigmoid of the difference. Only differences within a prompt matter, so the reward
    wants a baseline over the samples of one prompt. A contrast row may answer another prompt.

    contrastive:  loss = mean_i -log ( exp D(real_i) / (exp D(real_i) + exp D(fake_i) + sum_k exp D(contrast_ki)) )

    InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, eq. 4): which of these belongs to the prompt? The contrast rows
    of i are the same answer under K other prompts, so that the discriminator has to read the prompt. The weight of the
    contrast is not used.

    Shapes: logits [N], [M], [K] -> (scalar, metrics); N = M = K for bradley_terry; N = M and contrast [K * N], the K
    rows of one prompt N apart, for contrastive. Each kind is a mean of its own, so
    unequal counts do not tilt a pointwise loss. Softplus keeps large logits from overflowing.
    Metrics: ``logit_real``, ``logit_fake`` and, with contrast, ``logit_contrast``, the means; ``accuracy``, the share
    of pairs ranked right, or the mean of ``accuracy_real`` (share above the middle: 0, and 0.5 for least_squares) and
    ``accuracy_fake`` (share not above it); ``accuracy_contrast`` likewise, not part of ``accuracy``; pointwise also
    ``loss_real``, ``loss_fake`` and ``loss_contrast``; positive_unlabelled also ``negative_risk``, R.
    Raises ValueError for an empty set of logits, a negative weight, a weight without contrast, unequal pairs, a share
    of positives outside [0, 1), or labels smoothed by another loss than binary cross-entropy or to one half and beyond.
    Left out: penalties on the gradient (see ``gradient_penalty``).
    """
    if contrast_weight < 0:
        raise ValueError(f"contrast_weight={contrast_weight} must not be negative")
    if contrast_weight > 0 and contrast_logits is None:
        raise ValueError(f"contrast_weight={contrast_weight} needs contrast_logits: give them, or set the weight to 0")
    smoothing = {"real": label_smoothing_real, "fake": label_smoothing_fake, "contrast": label_smoothing_fake}
    if any(smoothing.values()) and kind != "binary_cross_entropy":
        raise ValueError(f"label smoothing is of binary_cross_entropy's labels, {kind} has none")
    for name, value in smoothing.items():
        if not 0.0 <= value < 0.5:
            raise ValueError(f"label_smoothing_{name}={value} must lie in [0, 0.5): at one half all labels are alike")
    parts = {"real": real_logits, "fake": fake_logits}
    if contrast_logits is not None:
        parts["contrast"] = contrast_logits
    for name, logits in parts.items():
        if not logits.numel():
            raise ValueError(f"the discriminator's update holds no {name} sequences: raise its batch size")
    metrics: TensorMetrics = {f"logit_{name}": logits.detach().mean() for name, logits in parts.items()}
    if kind == "bradley_terry":
        loss, more = _pairwise(parts, contrast_weight)
    elif kind == "contrastive":
        loss, more = _contrastive(parts)
    elif kind == "positive_unlabelled":
        loss, more = _positive_unlabelled(parts, contrast_weight, positive_share, clipped)
    else:
        loss, more = _pointwise(parts, kind, contrast_weight, smoothing)
    return loss, metrics | more


def _pointwise(
    parts: dict[str, Tensor], kind: str, contrast_weight: float, smoothing: dict[str, float]
) -> tuple[Tensor, TensorMetrics]:
    middle = 0.5 if kind == "least_squares" else 0.0
    negative = 0.5 / (1.0 + contrast_weight)
    weights = {"real": 0.5, "fake": negative, "contrast": contrast_weight * negative}
    metrics: TensorMetrics = {}
    weighted = []
    for name, logits in parts.items():
        is_real = name == "real"
        match kind:
            case "binary_cross_entropy":
                wrong = -logits if is_real else logits
                terms = softplus(wrong)
                if smoothing[name]:
                    terms = terms - smoothing[name] * wrong
            case "least_squares":
                terms = (logits - float(is_real)).square()
            case "hinge":
                terms = relu(1.0 - logits if is_real else 1.0 + logits)
            case _:
                raise ValueError(
                    f"unknown discriminator loss {kind!r}: choose binary_cross_entropy, least_squares, hinge, "
                    "positive_unlabelled, bradley_terry or contrastive"
                )
        mean = terms.mean()
        weighted.append(weights[name] * mean)
        metrics[f"loss_{name}"] = mean.detach()
        metrics[f"accuracy_{name}"] = ((logits > middle) == is_real).float().mean()
    metrics["accuracy"] = (metrics["accuracy_real"] + metrics["accuracy_fake"]) / 2
    return torch.stack(weighted).sum(), metrics


def negative_risk(real_logits: Tensor, fake_logits: Tensor, positive_share: float) -> Float[Tensor, ""]:
    """Cross-entropy of the rollouts that are not real, where a share of all is: R of ``positive_unlabelled``."""
    if not 0.0 <= positive_share < 1.0:
        raise ValueError(f"positive_share={positive_share} must lie in [0, 1)")
    unlabelled, positive = softplus(fake_logits).mean(), softplus(real_logits).mean()
    return (unlabelled - positive_share * positive) / (1.0 - positive_share)


def _positive_unlabelled(
    parts: dict[str, Tensor], contrast_weight: float, positive_share: float, clipped: bool | None
) -> tuple[Tensor, TensorMetrics]:
    _, metrics = _pointwise(parts, "binary_cross_entropy", contrast_weight, dict.fromkeys(parts, 0.0))
    risk = negative_risk(parts["real"], parts["fake"], positive_share)
    metrics["negative_risk"] = risk.detach()
    negative = relu(risk) if clipped is None else risk * (not clipped)
    if "contrast" in parts:
        negative = (negative + contrast_weight * softplus(parts["contrast"]).mean()) / (1.0 + contrast_weight)
    return (softplus(-parts["real"]).mean() + negative) / 2, metrics


def _contrastive(parts: dict[str, Tensor]) -> tuple[Tensor, TensorMetrics]:
    real = parts["real"]
    if len(parts["fake"]) != len(real) or any(len(part) % len(real) for part in parts.values()):
        sizes = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
        raise ValueError(
            f"contrastive compares answers to one prompt, but got {sizes} sequences: give one fake and as "
            "many contrast rows for every real one"
        )
    choices = torch.cat([part.reshape(-1, len(real)) for part in parts.values()])  # [2 + K, N], the real one first
    loss = (choices.logsumexp(0) - real).mean()
    metrics: TensorMetrics = {"accuracy": (real > choices[1]).float().mean()}
    if "contrast" in parts:
        metrics["accuracy_contrast"] = (real > choices[2:]).float().mean()
    return loss, metrics


def _pairwise(parts: dict[str, Tensor], contrast_weight: float) -> tuple[Tensor, TensorMetrics]:
    real = parts["real"]
    for name, logits in parts.items():
        if logits.shape != real.shape:
            raise ValueError(
                f"bradley_terry compares pairs, but got {len(real)} real and {len(logits)} {name} sequences: "
                "give one of each for every prompt"
            )
    margins = {name: real - logits for name, logits in parts.items() if name != "real"}
    loss = softplus(-margins["fake"]).mean()
    metrics: TensorMetrics = {"accuracy": (margins["fake"] > 0).float().mean()}
    if "contrast" in margins:
        loss = (loss + contrast_weight * softplus(-margins["contrast"]).mean()) / (1.0 + contrast_weight)
        metrics["accuracy_contrast"] = (margins["contrast"] > 0).float().mean()
    return loss, metrics
