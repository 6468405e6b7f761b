import pytest
import torch

from rlgaf_ray.objectives.instance_noise import add_instance_noise, instance_noise_scale


def test_the_scale_falls_in_a_line_to_zero():
    found = [instance_noise_scale(step, start=0.4, num_steps=4) for step in range(6)]
    assert found == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0, 0.0])


def test_the_noise_has_the_embeddings_size_and_stands_on_the_mask():
    torch.manual_seed(0)
    embeddings = torch.full((4, 50, 64), 3.0)
    embeddings[:, :, ::2] = -1.0  # rms: sqrt((9 + 1) / 2) = 2.2360680
    mask = torch.zeros(4, 50, dtype=torch.bool)
    mask[:, 10:40] = True
    embeddings[:, :10] = 1e6  # what the mask hides has no part in the size
    noise = add_instance_noise(embeddings, mask, scale=0.2) - embeddings
    assert not noise[~mask].any()
    inside = noise[mask].flatten()  # 7,680 draws: four standard errors of deviation and mean
    assert inside.std().item() == pytest.approx(0.2 * 2.2360680, rel=4 / (2 * 7680) ** 0.5)
    assert abs(inside.mean().item()) < 4 * 0.2 * 2.2360680 / 7680**0.5


def test_the_gradient_passes_through_unchanged():
    embeddings = torch.randn(2, 3, 4, requires_grad=True)
    weights = torch.randn(2, 3, 4)
    (add_instance_noise(embeddings, torch.ones(2, 3, dtype=torch.bool), scale=0.5) * weights).sum().backward()
    torch.testing.assert_close(embeddings.grad, weights)
