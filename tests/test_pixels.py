import numpy as np
import pytest
import torch

from mae.pixels import PixelNormalizer, PixelStatistics


@pytest.mark.parametrize(("bit_depth", "dtype"), [(8, np.uint8), (16, np.uint16)])
def test_normalisation_is_scale_mean_deviation(bit_depth: int, dtype: type) -> None:
    draw = np.random.default_rng(0)
    stored = draw.integers(0, 2**bit_depth, (2, 3, 5, 7)).astype(dtype)
    mean, std = np.array([0.2, 0.5, 0.7]), np.array([0.1, 0.2, 0.3])
    normalize = PixelNormalizer(PixelStatistics(tuple(mean), tuple(std), bit_depth))
    expected = (stored / (2**bit_depth - 1) - mean[:, None, None]) / std[:, None, None]
    actual = normalize(torch.from_numpy(stored))
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(normalize.invert(actual).numpy(), stored, rtol=1e-4, atol=1e-2)


def test_a_constant_channel_stays_finite() -> None:
    normalize = PixelNormalizer(PixelStatistics((0.5,), (0.0,)))
    assert torch.isfinite(normalize(torch.full((1, 1, 2, 2), 128, dtype=torch.uint8))).all()


def test_statistics_survive_json() -> None:
    statistics = PixelStatistics((0.1, 0.2), (0.3, 0.4), 16)
    assert PixelStatistics.from_dict(statistics.to_dict()) == statistics
