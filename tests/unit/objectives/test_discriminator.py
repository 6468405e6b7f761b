import math
from typing import Any

import pytest
import torch

from rlgaf_ray.objectives.discriminator import discriminator_loss


def gradient_of(leaf: torch.Tensor) -> float:
    assert leaf.grad is not None
    return leaf.grad.item()


LOG3 = math.log(3.0)  # probability 3/4


class TestHandWorkedValues:
    REAL = torch.tensor([LOG3, -LOG3, 0.0])  # -log p: 0.2876821, 1.3862944, 0.6931472; mean 0.7890412
    FAKE = torch.tensor([-LOG3, LOG3])  # -log(1 - p): 0.2876821, 1.3862944; mean 0.8369882
    CONTRAST = torch.tensor([-LOG3, -LOG3, -LOG3, LOG3])  # mean (3 x 0.2876821 + 1.3862944) / 4 = 0.5623352

    def test_without_contrast(self):
        loss, metrics = discriminator_loss(self.REAL, self.FAKE)
        assert loss.item() == pytest.approx((0.7890412 + 0.8369882) / 2, abs=1e-6)
        expected = {
            "loss_real": 0.7890412,
            "loss_fake": 0.8369882,
            "logit_real": 0.0,
            "logit_fake": 0.0,
            "accuracy_real": 1 / 3,
            "accuracy_fake": 0.5,
            "accuracy": 5 / 12,  # balanced: 3 reals and 2 fakes count the same
        }
        assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
    def test_with_contrast(self, weight):
        loss, metrics = discriminator_loss(self.REAL, self.FAKE, contrast_logits=self.CONTRAST, contrast_weight=weight)
        negative = (0.8369882 + weight * 0.5623352) / (1 + weight)
        assert loss.item() == pytest.approx((0.7890412 + negative) / 2, abs=1e-6)
        assert metrics["loss_contrast"].item() == pytest.approx(0.5623352, abs=1e-6)
        assert metrics["accuracy_contrast"].item() == 0.75
        assert metrics["logit_contrast"].item() == pytest.approx(-LOG3 / 2)
        assert metrics["accuracy"].item() == pytest.approx(5 / 12)

    def test_gradient_is_probability_minus_label(self):
        real, fake = torch.tensor([LOG3], requires_grad=True), torch.tensor([LOG3], requires_grad=True)
        contrast = torch.tensor([-LOG3], requires_grad=True)
        loss, metrics = discriminator_loss(real, fake, contrast_logits=contrast, contrast_weight=2.0)
        loss.backward()
        gradients = [gradient_of(leaf) for leaf in (real, fake, contrast)]
        assert gradients == pytest.approx([-0.25 / 2, 0.75 / 6, 2 * 0.25 / 6])
        assert not any(value.requires_grad for value in metrics.values())

    def test_large_logits_stay_finite(self):
        real = torch.tensor([-1e4], requires_grad=True)
        loss, _ = discriminator_loss(real, torch.tensor([1e4]))
        loss.backward()
        assert loss.item() == 1e4
        assert gradient_of(real) == -0.5

    def test_an_undecided_discriminator_has_accuracy_one_half(self):
        loss, metrics = discriminator_loss(torch.zeros(3), torch.zeros(5))
        assert loss.item() == pytest.approx(math.log(2.0))
        assert metrics["accuracy"].item() == 0.5


class TestOptimum:
    """A table with one logit per outcome, trained on counts proportional to the outcomes' probabilities."""

    # Out of 8: real 4, 2, 1, 1; fake 1, 1, 2, 4; contrast 1, 4, 2, 1.
    REAL = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
    FAKE = torch.tensor([0, 1, 2, 2, 3, 3, 3, 3])
    CONTRAST = torch.tensor([0, 1, 1, 1, 1, 2, 2, 3])

    def optimum(self, contrast_weight=0.0, **smoothing):
        table = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [table], max_iter=200, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
        )

        def closure():
            optimizer.zero_grad()
            loss, _ = discriminator_loss(
                table[self.REAL],
                table[self.FAKE],
                contrast_logits=table[self.CONTRAST] if contrast_weight else None,
                contrast_weight=contrast_weight,
                **smoothing,
            )
            loss.backward()
            return loss

        optimizer.step(closure)
        return table.detach().tolist()

    def test_is_the_log_ratio(self):
        expected = [math.log(4), math.log(2), math.log(1 / 2), math.log(1 / 4)]
        assert self.optimum() == pytest.approx(expected, abs=1e-6)

    def test_contrast_adds_to_the_denominator(self):
        # log 3 p / (q + w c) with w = 2: 12 / (1 + 2), 6 / (1 + 8), 3 / (2 + 4), 3 / (4 + 2)
        expected = [math.log(4), math.log(2 / 3), math.log(1 / 2), math.log(1 / 2)]
        assert self.optimum(contrast_weight=2.0) == pytest.approx(expected, abs=1e-6)

    def test_unequal_counts_do_not_shift_it(self):
        """Four times as many fakes from the same distribution have the same optimum."""
        once = self.optimum()
        self.FAKE = self.FAKE.repeat(4)
        assert self.optimum() == pytest.approx(once, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"contrast_weight": -1.0}, "contrast_weight=-1.0 must not be negative"),
        ({"contrast_weight": 1.0}, "contrast_weight=1.0 needs contrast_logits: pass them, or set the weight to 0"),
        (
            {"contrast_logits": torch.zeros(0), "contrast_weight": 1.0},
            "has no contrast sequences: raise its batch size",
        ),
        ({"fake_logits": torch.zeros(0)}, "has no fake sequences"),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        discriminator_loss(**{"real_logits": torch.zeros(2), "fake_logits": torch.zeros(2)} | arguments)


class TestOtherLosses:
    """Hand-worked values; with contrast weight 2 the parts are weighted 1 : 1 : 2."""

    REAL, FAKE, CONTRAST = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.5, 1.0]), torch.tensor([0.0, 1.0, 2.0])

    def loss(self, kind, **more):
        loss, metrics = discriminator_loss(self.REAL, self.FAKE, kind=kind, **more)
        return loss.item(), {name: value.item() for name, value in metrics.items()}

    def test_hinge(self):
        # real: 0, 0.5, 2; fake: 0, 1.5, 2; contrast: 1, 2, 3
        loss, metrics = self.loss("hinge")
        assert loss == pytest.approx((2.5 / 3 + 3.5 / 3) / 2)
        assert (metrics["accuracy_real"], metrics["accuracy_fake"]) == pytest.approx((2 / 3, 1 / 3))
        loss, metrics = self.loss("hinge", contrast_logits=self.CONTRAST, contrast_weight=2.0)
        assert loss == pytest.approx(2.5 / 6 + (3.5 / 3 + 2 * 2.0) / 6)
        assert metrics["accuracy_contrast"] == pytest.approx(1 / 3)

    def test_least_squares(self):
        # real: 1, 0.25, 4; fake: 4, 0.25, 1; the threshold is 0.5
        loss, metrics = self.loss("least_squares")
        assert loss == pytest.approx((5.25 / 3 + 5.25 / 3) / 2)
        assert (metrics["accuracy_real"], metrics["accuracy_fake"]) == pytest.approx((1 / 3, 2 / 3))

    def test_bradley_terry(self):
        # margins 4, 0, -2: log(1 + e^-4) = 0.0181499, log 2 = 0.6931472, log(1 + e^2) = 2.1269280
        loss, metrics = self.loss("bradley_terry")
        assert loss == pytest.approx((0.0181499 + 0.6931472 + 2.1269280) / 3, abs=1e-6)
        assert metrics["accuracy"] == pytest.approx(1 / 3)
        # contrast margins 2, -0.5, -3: 0.1269280, 0.9740770, 3.0485874
        loss, metrics = self.loss("bradley_terry", contrast_logits=self.CONTRAST, contrast_weight=2.0)
        expected = (0.9460750 + 2 * (0.1269280 + 0.9740770 + 3.0485874) / 3) / 3
        assert loss == pytest.approx(expected, abs=1e-6)

    def test_contrastive(self):
        """One hand-worked softmax over the real row, its rollout and two contrast rows."""
        real, fake = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
        contrast = torch.tensor([-1.0, 0.0, 1.0, 0.5])  # rows 0, 1, 0, 1
        loss, metrics = discriminator_loss(real, fake, kind="contrastive", contrast_logits=contrast)
        rows = [(1.0, 0.0, -1.0, 1.0), (0.0, 2.0, 0.0, 0.5)]
        expected = sum(math.log(sum(map(math.exp, row))) - row[0] for row in rows) / 2
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        assert metrics["accuracy"].item() == 0.5
        assert metrics["accuracy_contrast"].item() == 0.25
        alone, _ = discriminator_loss(real, fake, kind="contrastive")
        ranked, _ = discriminator_loss(real, fake, kind="bradley_terry")
        assert alone.item() == pytest.approx(ranked.item(), abs=1e-6)
        with pytest.raises(ValueError, match="responses to one prompt, but got 2 real, 2 fake, 3 contrast"):
            discriminator_loss(real, fake, kind="contrastive", contrast_logits=contrast[:3])

    def test_bradley_terry_depends_on_differences_only(self):
        shifted, _ = discriminator_loss(self.REAL + 7, self.FAKE + 7, kind="bradley_terry")
        assert shifted.item() == pytest.approx(self.loss("bradley_terry")[0], abs=1e-6)

    def test_bradley_terry_raises_on_unpaired_sequences(self):
        with pytest.raises(ValueError, match="got 3 real and 2 fake sequences: pass one of each for every prompt"):
            discriminator_loss(self.REAL, self.FAKE[:2], kind="bradley_terry")


class TestPositiveUnlabelled:
    """A quarter of the rollouts counts as real."""

    REAL = torch.tensor([LOG3, -LOG3])  # -log p: 0.2876821, 1.3862944; -log(1 - p) the other way round; means 0.8369882
    FAKE = torch.tensor([LOG3, LOG3, 0.0])  # -log(1 - p): 1.3862944 twice, 0.6931472; mean 1.1552453
    RISK = (1.1552453 - 0.25 * 0.8369882) / 0.75

    def loss(self, real=REAL, fake=FAKE, **more):
        settings: dict[str, Any] = {"kind": "positive_unlabelled", "positive_share": 0.25} | more
        loss, metrics = discriminator_loss(real, fake, **settings)
        return loss, {name: value.item() for name, value in metrics.items()}

    def test_by_hand(self):
        loss, metrics = self.loss()
        assert loss.item() == pytest.approx((0.8369882 + self.RISK) / 2, abs=1e-6)
        assert metrics["negative_risk"] == pytest.approx(self.RISK, abs=1e-6)
        _, plain = discriminator_loss(self.REAL, self.FAKE)
        assert {name: metrics[name] for name in plain} == {name: value.item() for name, value in plain.items()}

    def test_with_contrast(self):
        """Contrast rows are labelled negatives: they are averaged with the clipped risk by their weight."""
        loss, metrics = self.loss(contrast_logits=torch.tensor([-LOG3]), contrast_weight=2.0)
        assert loss.item() == pytest.approx(0.8369882 / 2 + (self.RISK + 2 * 0.2876821) / 6, abs=1e-6)
        assert metrics["loss_contrast"] == pytest.approx(0.2876821, abs=1e-6)

    def test_a_negative_risk_counts_as_zero_without_gradient(self):
        real = torch.tensor([LOG3], requires_grad=True)
        fake = torch.tensor([-LOG3], requires_grad=True)
        loss, metrics = self.loss(real, fake)  # 0.2876821 - 0.25 * 1.3862944 < 0
        assert metrics["negative_risk"] == pytest.approx((0.2876821 - 0.25 * 1.3862944) / 0.75, abs=1e-6)
        assert loss.item() == pytest.approx(0.2876821 / 2, abs=1e-6)
        loss.backward()
        assert (gradient_of(real), gradient_of(fake)) == pytest.approx((-0.25 / 2, 0.0))

    def test_gradient_of_a_positive_risk(self):
        real = torch.tensor([LOG3], requires_grad=True)
        fake = torch.tensor([LOG3], requires_grad=True)
        self.loss(real, fake)[0].backward()
        assert gradient_of(fake) == pytest.approx(0.75 / 0.75 / 2)
        assert gradient_of(real) == pytest.approx((-0.25 - 0.25 * 0.75 / 0.75) / 2)

    def test_clipping_can_be_decided_by_the_full_batch(self):
        kept, _ = self.loss(torch.tensor([LOG3]), torch.tensor([-LOG3]), clipped=False)
        assert kept.item() == pytest.approx((0.2876821 + (0.2876821 - 0.25 * 1.3862944) / 0.75) / 2, abs=1e-6)
        left_out, _ = self.loss(clipped=True)
        assert left_out.item() == pytest.approx(0.8369882 / 2, abs=1e-6)

    def test_a_share_of_zero_is_binary_cross_entropy(self):
        assert self.loss(positive_share=0.0)[0].item() == discriminator_loss(self.REAL, self.FAKE)[0].item()
        with pytest.raises(ValueError, match=r"positive_share=1.0 must be in \[0, 1\)"):
            self.loss(positive_share=1.0)

    def test_the_optimum_is_the_log_ratio_to_the_bad_rollouts(self):
        """Counts per sequence: real 4, 2, 1, 1; bad 1, 1, 2, 4. A quarter of the 32 rollouts is real: 7, 5, 7, 13."""
        settings = TestOptimum()
        settings.REAL = torch.repeat_interleave(torch.arange(4), torch.tensor([4, 2, 1, 1]))
        settings.FAKE = torch.repeat_interleave(torch.arange(4), torch.tensor([7, 5, 7, 13]))
        expected = [math.log(4), math.log(2), math.log(1 / 2), math.log(1 / 4)]
        found = settings.optimum(kind="positive_unlabelled", positive_share=0.25)
        assert found == pytest.approx(expected, abs=1e-6)
