"""Spectra made by hand, whose ranks and slopes are known, and formulas written another way."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from torch import Tensor

from mae.evaluation import spectrum
from mae.evaluation.spectrum import (
    alpha,
    effective_rank,
    eigenvalues,
    has_collapsed,
    linear_cka,
    moments_of,
    rank_me,
    uniformity,
)

SEEDS = st.integers(0, 10_000)


def noise(seed: int, count: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def rotation(seed: int, width: int) -> Tensor:
    return torch.linalg.qr(noise(seed, width, width)).Q


def skewed(seed: int, count: int, width: int) -> Tensor:
    """Features of uneven directions and a mean."""
    scales = torch.arange(1, width + 1, dtype=torch.float64) ** -1.0
    return noise(seed, count, width) * scales @ rotation(seed + 1, width) + 0.3


def with_covariance(values: Tensor, count: int = 64) -> Tensor:
    """Centred features whose covariance has exactly these eigenvalues."""
    free = noise(0, count, len(values))
    orthonormal = torch.linalg.qr(free - free.mean(dim=0)).Q
    return orthonormal * (values * count).sqrt() @ rotation(1, len(values))


# --- RankMe, effective rank ----------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_as_many_equal_directions_as_there_are_is_the_rank(rank: int) -> None:
    features = with_covariance(torch.tensor([2.0] * rank + [0.0] * (16 - rank)).double())
    assert rank_me(moments_of(features)) == pytest.approx(rank, rel=1e-3)
    assert effective_rank(eigenvalues(moments_of(features))) == pytest.approx(rank, rel=1e-9)


def test_an_uneven_spectrum_has_the_entropy_of_its_shares() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 1.0]).double()
    entropy = 0.5 * math.log(2) + 0.25 * math.log(4) + 2 * 0.125 * math.log(8)
    features = with_covariance(values)
    found = eigenvalues(moments_of(features))
    torch.testing.assert_close(found, values)
    assert effective_rank(found) == pytest.approx(math.exp(entropy))


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_rank_me_is_the_papers_formula(seed: int) -> None:
    features = skewed(seed, 40, 12)
    singular = np.linalg.svd(features.numpy(), compute_uv=False)
    shares = singular / np.abs(singular).sum() + 1e-7
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert rank_me(moments_of(features)) == pytest.approx(expected, rel=1e-6)


@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_neither_rotation_nor_scale_changes_a_rank(seed: int, scale: float) -> None:
    features = skewed(seed, 50, 10)
    turned = features @ rotation(seed + 5, 10) * scale
    for one, other in ((features, turned), (features, features.flip(0))):
        first, second = moments_of(one), moments_of(other)
        assert rank_me(first) == pytest.approx(rank_me(second), rel=1e-6)
        ranks = [effective_rank(eigenvalues(moments)) for moments in (first, second)]
        assert ranks[0] == pytest.approx(ranks[1], rel=1e-6)
        assert 1 <= ranks[0] <= 10
    shifted = eigenvalues(moments_of(features + 7.0))
    torch.testing.assert_close(shifted, eigenvalues(moments_of(features)))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features = skewed(0, 101, 6).float()
    whole, spread = moments_of(features), uniformity(features)
    monkeypatch.setattr(spectrum, "_BLOCK", 8)
    for one, other in zip(whole, moments_of(features), strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other))
    assert uniformity(features) == pytest.approx(spread, rel=1e-6)
    expected = np.cov(features.numpy(), rowvar=False, bias=True)
    torch.testing.assert_close(whole.covariance, torch.tensor(expected))


@pytest.mark.parametrize("value", [0.0, 1.0, 37.7])
def test_features_alike_for_all_images_fill_no_direction(value: float) -> None:
    features = torch.full((30, 8), value)
    found = eigenvalues(moments_of(features))
    assert effective_rank(found) == 0.0 and alpha(found) is None
    assert has_collapsed(0.0, images=30, width=8, share=0.0)
    assert linear_cka(features, noise(0, 30, 8)) is None
    assert math.isfinite(rank_me(moments_of(features)))


def test_collapse_is_a_share_of_what_could_be_filled() -> None:
    assert has_collapsed(6.3, images=1000, width=128, share=0.05)
    assert not has_collapsed(6.5, images=1000, width=128, share=0.05)
    assert not has_collapsed(2.0, images=21, width=1024, share=0.1)


# --- slope -----------------------------------------------------------------------------------


@given(exponent=st.floats(0.2, 3.0), scale=st.floats(1e-3, 1e3), width=st.integers(16, 200))
@settings(max_examples=25, deadline=None)
def test_a_power_law_has_its_exponent(exponent: float, scale: float, width: int) -> None:
    ranks = torch.arange(1, width + 1, dtype=torch.float64)
    assert alpha(scale * ranks**-exponent) == pytest.approx(exponent, rel=1e-6)


def test_the_slope_is_a_weighted_fit_to_ranks_4_to_100() -> None:
    values = (noise(3, 1, 150)[0].abs() + 0.1).sort(descending=True).values
    ranks = np.arange(4, 101)
    slope, _ = np.polyfit(np.log(ranks), values[3:100].log().numpy(), 1, w=ranks**-0.5)
    assert alpha(values) == pytest.approx(-slope, rel=1e-9)
    assert alpha(torch.cat([values[:20], torch.zeros(100).double()])) == alpha(values[:20])


def test_too_few_directions_have_no_slope() -> None:
    assert alpha(torch.arange(10, 0, -1).double()) is None


# --- uniformity, CKA ---------------------------------------------------------------------------


def test_uniformity_is_the_papers_mean_over_pairs() -> None:
    features = skewed(0, 50, 8)
    unit = features / features.norm(dim=1, keepdim=True)
    expected = np.log(np.exp(-2 * pdist(unit.numpy(), "sqeuclidean")).mean())
    assert uniformity(features) == pytest.approx(expected, rel=1e-4)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-6)


def unbiased_hsic(k: np.ndarray, other: np.ndarray) -> Any:
    """Song et al. 2012, equation 4, with the kernels written out."""
    n = len(k)
    k, other = (one - np.diag(np.diag(one)) for one in (k, other))
    ones = np.ones(n)
    total = np.trace(k @ other)
    total += (ones @ k @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
    return total - 2 / (n - 2) * (ones @ k @ other @ ones)


def test_cka_is_that_of_the_kernels() -> None:
    x = skewed(0, 30, 6)
    y = x[:, :4] @ noise(1, 4, 9) + noise(2, 30, 9)
    k, other = (x @ x.mT).numpy(), (y @ y.mT).numpy()
    own = unbiased_hsic(k, k) * unbiased_hsic(other, other)
    assert linear_cka(x, y) == pytest.approx(unbiased_hsic(k, other) / np.sqrt(own), rel=1e-9)


def test_cka_nears_the_plain_formula_with_many_images() -> None:
    x = skewed(0, 4000, 5)
    y = x @ noise(1, 5, 5) + 0.2 * noise(2, 4000, 5)
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    plain = (y.mT @ x).norm() ** 2 / ((x.mT @ x).norm() * (y.mT @ y).norm())
    assert linear_cka(x, y) == pytest.approx(float(plain), abs=2e-3)


@given(seed=SEEDS, scale=st.floats(1e-2, 1e2))
@settings(max_examples=20, deadline=None)
def test_cka_sees_no_rotation_scale_or_shift(seed: int, scale: float) -> None:
    x, y = skewed(seed, 40, 7), skewed(seed + 9, 40, 5)
    moved = x @ rotation(seed, 7) * scale + 3.0
    assert linear_cka(x, moved) == pytest.approx(1.0)
    assert linear_cka(x, y) == pytest.approx(linear_cka(moved, y), abs=1e-6)


def test_unrelated_features_have_none_however_few_the_images() -> None:
    values = [linear_cka(noise(2 * i, 40, 64), noise(2 * i + 1, 40, 64)) for i in range(20)]
    assert abs(np.mean([value for value in values if value is not None])) < 0.05
    assert linear_cka(noise(0, 3, 4), noise(0, 3, 4)) is None
