import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae.model.noise import add_noise


@given(channels=st.sampled_from([1, 3, 13]), height=st.integers(1, 9), width=st.integers(1, 9))
@settings(deadline=None, max_examples=20)
def test_noise_of_an_image_does_not_depend_on_its_batch(
    channels: int, height: int, width: int
) -> None:
    images = torch.zeros(3, channels, height, width)
    ids = torch.tensor([5, 1 << 62, 0])
    together = add_noise(images, ids, seed=1, epoch=2, strength=0.5)
    assert together.shape == images.shape
    for i in (2, 0):
        assert torch.equal(add_noise(images[i : i + 1], ids[i : i + 1], 1, 2, 0.5)[0], together[i])
    if together[0].numel() > 1:
        assert not torch.equal(together[0], together[1])
        assert not torch.equal(together, add_noise(images, ids, 1, 3, 0.5))
        assert not torch.equal(together, add_noise(images, ids, 2, 2, 0.5))


def test_noise_is_gaussian_and_independent() -> None:
    noise = add_noise(torch.zeros(40, 1, 50, 51), torch.arange(40), 0, 0, 2.0).double() / 2
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    normal = torch.distributions.Normal(0.0, 1.0)
    quantiles = torch.linspace(0.01, 0.99, 25, dtype=torch.float64)
    below = (noise.flatten() <= normal.icdf(quantiles)[:, None]).double().mean(dim=1)
    torch.testing.assert_close(below, quantiles, atol=0.01, rtol=0)
    halves = noise.flatten(1).chunk(2, dim=1)
    assert (halves[0] * halves[1]).mean().abs() < 0.02  # of one pair of draws
    assert (noise[:, :, 1:] * noise[:, :, :-1]).mean().abs() < 0.02
    assert (noise[1:] * noise[:-1]).mean().abs() < 0.02


def test_no_noise_changes_nothing_and_the_global_generator_is_left_alone() -> None:
    images = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    assert torch.equal(add_noise(images, torch.tensor([1, 2]), 0, 0, 0.0), images)
    assert torch.equal(state, torch.get_rng_state())
