"""The discriminator's losses: pointwise ones, which label each sequence, and a pairwise one, which ranks two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu, softplus

from rlgaf_ray.config.discriminator import DiscriminatorLoss
from rlgaf_ray.objectives.policy import TensorMetrics

Parts = dict[str, Tensor]  # the logits of "real", "fake" and, where there are such rows, "contrast"


@dataclass(frozen=True, slots=True)
class LossOptions:
    """The arguments of ``discriminator_loss`` beside the logits."""

    contrast_weight: float
    positive_share: float
    clipped: bool | None


LossFunction = Callable[[Parts, LossOptions], tuple[Tensor, TensorMetrics]]


def discriminator_loss(
    real_logits: Float[Tensor, " real"],
    fake_logits: Float[Tensor, " fake"],
    *,
    kind: DiscriminatorLoss = "binary_cross_entropy",
    contrast_logits: Float[Tensor, " contrast"] | None = None,
    contrast_weight: float = 0.0,
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
      a low score even once the rollouts match the demonstrations.
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
    of positives outside [0, 1).
    """
    if contrast_weight < 0:
        raise ValueError(f"contrast_weight={contrast_weight} must not be negative")
    if contrast_weight > 0 and contrast_logits is None:
        raise ValueError(f"contrast_weight={contrast_weight} needs contrast_logits: give them, or set the weight to 0")
    parts = {"real": real_logits, "fake": fake_logits}
    if contrast_logits is not None:
        parts["contrast"] = contrast_logits
    for name, logits in parts.items():
        if not logits.numel():
            raise ValueError(f"the discriminator's update holds no {name} sequences: raise its batch size")
    metrics: TensorMetrics = {f"logit_{name}": logits.detach().mean() for name, logits in parts.items()}
    if kind not in LOSSES:
        raise ValueError(f"unknown discriminator loss {kind!r}: choose {', '.join(LOSSES)}")
    loss, more = LOSSES[kind](parts, LossOptions(contrast_weight, positive_share, clipped))
    return loss, metrics | more


def _pointwise(term: Callable[[Tensor, bool], Tensor], *, middle: float = 0.0) -> LossFunction:
    """A loss of the mean ``term(logits, is_real)`` of every part; above ``middle`` a logit says real."""

    def loss_of(parts: Parts, options: LossOptions) -> tuple[Tensor, TensorMetrics]:
        negative = 0.5 / (1.0 + options.contrast_weight)
        weights = {"real": 0.5, "fake": negative, "contrast": options.contrast_weight * negative}
        metrics: TensorMetrics = {}
        weighted = []
        for name, logits in parts.items():
            is_real = name == "real"
            mean = term(logits, is_real).mean()
            weighted.append(weights[name] * mean)
            metrics[f"loss_{name}"] = mean.detach()
            metrics[f"accuracy_{name}"] = ((logits > middle) == is_real).float().mean()
        metrics["accuracy"] = (metrics["accuracy_real"] + metrics["accuracy_fake"]) / 2
        return torch.stack(weighted).sum(), metrics

    return loss_of


def _cross_entropy(logits: Tensor, is_real: bool) -> Tensor:
    return softplus(-logits if is_real else logits)


def _squares(logits: Tensor, is_real: bool) -> Tensor:
    return (logits - float(is_real)).square()


def _hinge(logits: Tensor, is_real: bool) -> Tensor:
    return relu(1.0 - logits if is_real else 1.0 + logits)


def negative_risk(real_logits: Tensor, fake_logits: Tensor, positive_share: float) -> Float[Tensor, ""]:
    """Cross-entropy of the rollouts that are not real, where a share of all is: R of ``positive_unlabelled``."""
    if not 0.0 <= positive_share < 1.0:
        raise ValueError(f"positive_share={positive_share} must lie in [0, 1)")
    unlabelled, positive = softplus(fake_logits).mean(), softplus(real_logits).mean()
    return (unlabelled - positive_share * positive) / (1.0 - positive_share)


def _positive_unlabelled(parts: Parts, options: LossOptions) -> tuple[Tensor, TensorMetrics]:
    _, metrics = _pointwise(_cross_entropy)(parts, options)
    risk = negative_risk(parts["real"], parts["fake"], options.positive_share)
    metrics["negative_risk"] = risk.detach()
    negative = relu(risk) if options.clipped is None else risk * (not options.clipped)
    if "contrast" in parts:
        weight = options.contrast_weight
        negative = (negative + weight * softplus(parts["contrast"]).mean()) / (1.0 + weight)
    return (softplus(-parts["real"]).mean() + negative) / 2, metrics


def _contrastive(parts: Parts, options: LossOptions) -> tuple[Tensor, TensorMetrics]:
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


def _bradley_terry(parts: Parts, options: LossOptions) -> tuple[Tensor, TensorMetrics]:
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
        weight = options.contrast_weight
        loss = (loss + weight * softplus(-margins["contrast"]).mean()) / (1.0 + weight)
        metrics["accuracy_contrast"] = (margins["contrast"] > 0).float().mean()
    return loss, metrics


LOSSES: dict[DiscriminatorLoss, LossFunction] = {
    "binary_cross_entropy": _pointwise(_cross_entropy),
    "least_squares": _pointwise(_squares, middle=0.5),
    "hinge": _pointwise(_hinge),
    "positive_unlabelled": _positive_unlabelled,
    "bradley_terry": _bradley_terry,
    "contrastive": _contrastive,
}
"""``discriminator.loss`` by name; what a loss asks of its batch is in ``config.discriminator.LOSS_TRAITS``."""
