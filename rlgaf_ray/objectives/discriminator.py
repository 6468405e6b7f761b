"""Discriminator losses: pointwise (classify each sequence) and comparative (rank responses to the same prompt)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu, softplus

from rlgaf_ray.config.discriminator import DiscriminatorLoss
from rlgaf_ray.objectives.policy import TensorMetrics

Parts = dict[str, Tensor]  # logits of the "real", "fake" and, if any, "contrast" sequences


@dataclass(frozen=True, slots=True)
class LossOptions:
    """The arguments of ``discriminator_loss`` other than the logits."""

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
    """Compute a loss that scores demonstrations above rollouts and above contrast sequences (weight w).

    Contrast sequences are demonstrations with an unwanted property. Pointwise losses, with a term r(D) for real
    sequences and f(D) for the others::

        loss = mean r(D(real)) / 2 + (mean f(D(fake)) + w * mean f(D(contrast))) / (2 (1 + w))

    Real text is half of the loss for any w, so a logit of 0 means "undecided".

    - binary_cross_entropy: r = softplus(-D) = -log sigmoid(D), f = softplus(D); without contrast the two are averaged,
      as in RLGAF (arXiv 2305.06176), section 2. The optimum is D = log p_real / p_fake (Goodfellow et al. 2014, arXiv
      1406.2661, proposition 1), and with contrast log p_real (1 + w) / (p_fake + w p_contrast): unwanted text keeps a
      low score even once the rollouts match the demonstrations.
    - least_squares: r = (D - 1)^2, f = D^2 (Mao et al. 2017, arXiv 1611.04076, eq. 2 with a = 0, b = 1). The optimum is
      D = p_real / (p_real + p_fake), a score between 0 and 1.
    - hinge: r = max(0, 1 - D), f = max(0, 1 + D) (Lim & Ye 2017, arXiv 1705.02894). Sequences beyond the margin get no
      gradient.
    - positive_unlabelled: r and f of binary cross-entropy, but a fraction pi (``positive_share``) of the rollouts
      counts as real: max(0, R) replaces mean f(D(fake)), R = (mean f(D(fake)) - pi * mean f(D(real))) / (1 - pi), the
      non-negative risk of Kiryo et al. 2017 (arXiv 1703.00593, eq. 6). A rollout as good as a demonstration is not
      labelled fake (RLGAF, section 4.4). The optimum is D = log p_real / p_bad with p_fake = pi * p_real +
      (1 - pi) * p_bad. A negative R means that demonstrations are being memorised, so the term is dropped; algorithm 1
      of the paper does gradient ascent there instead. ``clipped`` states whether R of the full batch is negative if
      these logits are one micro-batch of it; None decides by these logits.

    Comparative losses, where row i of every set answers the same prompt::

        bradley_terry:  loss = (d(fake, real) + w * d(contrast, real)) / (1 + w)
                        d(a, b) = mean_i softplus(D(a_i) - D(b_i))

    GAD (arXiv 2511.10643): minus log sigmoid of the difference. Only differences within a prompt matter, so use a
    baseline over the samples of one prompt. A contrast row may answer another prompt.

    contrastive:  loss = mean_i -log ( exp D(real_i) / (exp D(real_i) + exp D(fake_i) + sum_k exp D(contrast_ki)) )

    InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, eq. 4): identify the response that belongs to the prompt. The
    contrast rows of i pair the same response with K other prompts, which forces the discriminator to read the prompt.
    ``contrast_weight`` is not used.

    Shapes: logits [N], [M], [K] -> (scalar, metrics). bradley_terry needs N = M = K; contrastive needs N = M and
    contrast [K * N], with the K rows of one prompt N apart. Pointwise losses average each set separately, so unequal
    counts do not shift the balance. Softplus keeps large logits from overflowing.
    Metrics: ``logit_real``, ``logit_fake`` and, with contrast, ``logit_contrast``, the means; ``accuracy``, the share
    of correctly ranked pairs, or the mean of ``accuracy_real`` (share above the threshold: 0, or 0.5 for least_squares)
    and ``accuracy_fake`` (share not above it); ``accuracy_contrast`` likewise, not part of ``accuracy``; pointwise also
    ``loss_real``, ``loss_fake`` and ``loss_contrast``; positive_unlabelled also ``negative_risk``, R.
    Raises ValueError for an empty set of logits, a negative weight, a weight without contrast, unequal pairs, or a
    ``positive_share`` outside [0, 1).
    """
    if contrast_weight < 0:
        raise ValueError(f"contrast_weight={contrast_weight} must not be negative")
    if contrast_weight > 0 and contrast_logits is None:
        raise ValueError(f"contrast_weight={contrast_weight} needs contrast_logits: pass them, or set the weight to 0")
    parts = {"real": real_logits, "fake": fake_logits}
    if contrast_logits is not None:
        parts["contrast"] = contrast_logits
    for name, logits in parts.items():
        if not logits.numel():
            raise ValueError(f"the discriminator's update has no {name} sequences: raise its batch size")
    metrics: TensorMetrics = {f"logit_{name}": logits.detach().mean() for name, logits in parts.items()}
    if kind not in LOSSES:
        raise ValueError(f"unknown discriminator loss {kind!r}: choose {', '.join(LOSSES)}")
    loss, more = LOSSES[kind](parts, LossOptions(contrast_weight, positive_share, clipped))
    return loss, metrics | more


def _pointwise(term: Callable[[Tensor, bool], Tensor], *, middle: float = 0.0) -> LossFunction:
    """Build a loss from the mean ``term(logits, is_real)`` of each part; logits above ``middle`` count as real."""

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
    """Estimate the cross-entropy of the truly fake rollouts, R of ``positive_unlabelled``; it may be negative."""
    if not 0.0 <= positive_share < 1.0:
        raise ValueError(f"positive_share={positive_share} must be in [0, 1)")
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
            f"contrastive compares responses to one prompt, but got {sizes} sequences: pass one fake and the same "
            "number of contrast rows for every real one"
        )
    choices = torch.cat([part.reshape(-1, len(real)) for part in parts.values()])  # [2 + K, N], row 0 is real
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
                "pass one of each for every prompt"
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
"""Losses by the name in ``discriminator.loss``; ``config.discriminator.LOSS_TRAITS`` has their batch requirements."""
