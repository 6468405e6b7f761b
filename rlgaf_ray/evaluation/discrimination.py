"""How well logits separate real from generated responses: AUC and information with 95 % intervals."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from rlgaf_ray.types import Metrics

Z95 = 1.959964


def auc(real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
    """Return P(real > fake) + P(equal) / 2 and the half-width of its 95 % interval.

    The area under the ROC curve as the Mann-Whitney statistic, with the variance of DeLong et al. 1988 (Biometrics 44)
    from each row's share of correctly ranked pairs. Shapes: [M], [N].
    """
    ranks = rankdata(np.concatenate([real, fake]))
    # share of the other class ranked below each row (above, for fake rows); ties count half
    above_fake = (ranks[: len(real)] - rankdata(real)) / len(fake)
    below_real = 1.0 - (ranks[len(real) :] - rankdata(fake)) / len(real)
    variance = above_fake.var(ddof=1) / len(real) + below_real.var(ddof=1) / len(fake)
    return float(above_fake.mean()), Z95 * math.sqrt(variance)


def information(real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
    """Estimate the logits' information about the class in nats per row, and the half-width of its 95 % interval.

    H(class) - mean log loss of sigmoid(a * logit + b), where a >= 0 and b are fitted on each half of the rows and
    evaluated on the other half. It is 0 for constant logits and may be below 0 for misleading ones. Classes have equal
    weight, so the maximum is ln 2. Fitting scale and offset makes logits of different losses comparable. Shapes: [M],
    [N]; rows in random order.
    """
    logits = np.concatenate([real, fake])
    labels = np.repeat([1, 0], [len(real), len(fake)])
    weights = np.where(labels == 1, 0.5 / len(real), 0.5 / len(fake)) * len(logits)
    half = np.arange(len(logits)) % 2 == 0
    gains = np.empty(len(logits))
    for fitted in (half, ~half):
        gains[~fitted] = math.log(2) - _log_loss(logits, labels, weights, fitted)
    deviation = (weights * gains).std(ddof=1)
    return float((weights * gains).mean()), Z95 * float(deviation) / math.sqrt(len(gains))


def _log_loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Return the log loss of each row outside the fitted half, in nats."""
    scale = max(float(logits[fitted].std()), 1e-12)
    scaled = ((logits - logits[fitted].mean()) / scale)[:, None]
    model = LogisticRegression(C=1e6).fit(scaled[fitted], labels[fitted], sample_weight=weights[fitted])
    slope = float(model.coef_[0, 0])
    if slope <= 0:  # inverted: use a constant instead
        return np.full(int((~fitted).sum()), math.log(2))
    odds = scaled[~fitted, 0] * slope + float(model.intercept_[0])
    return np.logaddexp(0.0, np.where(labels[~fitted] == 1, -odds, odds))


def discrimination(real: np.ndarray, fake: np.ndarray) -> Metrics:
    """Compute the discrimination metrics of logits on held-out real responses and as many generated ones.

    Non-finite logits give NaN, which the guard reports.
    """
    area = area_interval = nats = nats_interval = math.nan
    if np.isfinite(real).all() and np.isfinite(fake).all():
        area, area_interval = auc(real, fake)
        nats, nats_interval = information(real, fake)
    return {
        "discriminator/held_out_auc": area,
        "discriminator/held_out_auc_interval": area_interval,
        "discriminator/information": nats,
        "discriminator/information_interval": nats_interval,
    }
