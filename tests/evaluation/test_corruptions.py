import io
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mae.evaluation.corruptions import SEVERITIES, corrupt, full_scale
from mae.params.evaluation import Corruption

ALL = get_args(Corruption)
DTYPES = (torch.uint8, torch.uint16)


def scenes(
    count: int, channels: int, height: int, width: int, dtype: torch.dtype, seed: int = 0
) -> Tensor:
    """Soft blobs with some grain, over the whole range of values: what images are like."""
    rng = np.random.default_rng(seed)
    grain = rng.normal(size=(count, channels, height, width))
    soft = gaussian_filter(grain, (0, 0, height / 8, width / 8)) * height / 3 + grain * 0.1
    low, high = soft.min(axis=(2, 3), keepdims=True), soft.max(axis=(2, 3), keepdims=True)
    stored = (soft - low) / np.maximum(high - low, 1e-9) * torch.iinfo(dtype).max
    return torch.from_numpy(stored.astype(np.int32)).to(dtype)


def distance(a: Tensor, b: Tensor) -> float:
    """Root mean square difference, as a share of the full scale."""
    return float((a.double() - b.double()).square().mean().sqrt()) / full_scale(a)


@given(
    corruption=st.sampled_from(ALL),
    severity=st.sampled_from(SEVERITIES),
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_type_is_kept_and_the_images_are_not_touched(
    corruption: Corruption,
    severity: int,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    seed: int,
) -> None:
    images = scenes(2, *shape, dtype=dtype)
    before = images.clone()
    found = corrupt(images, torch.tensor([5, 9]), corruption, severity, seed)
    assert (found.shape, found.dtype) == (images.shape, dtype)
    assert torch.equal(images, before)


@given(
    corruption=st.sampled_from(ALL),
    dtype=st.sampled_from(DTYPES),
    channels=st.sampled_from([1, 2, 3, 5]),
    height=st.integers(24, 64),
    width=st.integers(24, 64),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_the_severer_the_further_away(
    corruption: Corruption,
    dtype: torch.dtype,
    channels: int,
    height: int,
    width: int,
    seed: int,
) -> None:
    images = scenes(8, channels, height, width, dtype, seed)
    ids = torch.arange(8) + 100 * seed
    distances = [
        distance(corrupt(images, ids, corruption, severity, seed), images)
        for severity in SEVERITIES
    ]
    assert distances[0] > 0
    assert all(a < b for a, b in pairwise(distances)), distances


@given(
    corruption=st.sampled_from(ALL),
    dtype=st.sampled_from(DTYPES),
    order=st.permutations(range(6)),
    cut=st.integers(1, 6),
)
@settings(max_examples=30, deadline=None)
def test_the_rest_of_the_batch_does_not_matter(
    corruption: Corruption, dtype: torch.dtype, order: list[int], cut: int
) -> None:
    images, ids = scenes(6, 3, 33, 20, dtype), torch.arange(6) * 17
    whole = corrupt(images, ids, corruption, 3, seed=4)
    some = order[:cut]
    assert torch.equal(corrupt(images[some], ids[some], corruption, 3, seed=4), whole[some])


def test_many_pixels_are_corrupted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    images, ids = scenes(5, 2, 16, 16, torch.uint8), torch.arange(5)
    whole = {name: corrupt(images, ids, name, 2, seed=1) for name in ALL}
    monkeypatch.setattr("mae.evaluation.corruptions._VALUES_AT_ONCE", 2 * 2 * 256)
    for name, expected in whole.items():
        assert torch.equal(corrupt(images, ids, name, 2, seed=1), expected)


@pytest.mark.parametrize("corruption", ALL)
def test_no_images_are_no_images(corruption: Corruption) -> None:
    none = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    assert corrupt(none, torch.empty(0, dtype=torch.int64), corruption, 1, 0).shape == none.shape


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_there_are_five_severities(severity: int) -> None:
    images = scenes(1, 1, 8, 8, torch.uint8)
    with pytest.raises(ValueError, match="severity"):
        corrupt(images, torch.tensor([0]), "noise", severity, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_gaussian_with_the_deviation_of_imagenet_c(dtype: torch.dtype) -> None:
    grey = torch.full((4, 1, 128, 128), full_scale(torch.empty(0, dtype=dtype)) // 2).to(dtype)
    for severity, deviation in enumerate((0.08, 0.12), start=1):  # severer ones are clipped
        noise = corrupt(grey, torch.arange(4), "noise", severity, seed=3).double() - grey.double()
        noise /= full_scale(grey)
        assert abs(float(noise.mean())) < 5 * deviation / noise.numel() ** 0.5
        assert float(noise.std()) == pytest.approx(deviation, rel=0.02)
        # A Gaussian has kurtosis 3.
        assert float((noise / noise.std()).pow(4).mean()) == pytest.approx(3, abs=0.15)


def test_noise_is_drawn_anew_for_each_image_severity_and_seed() -> None:
    grey = torch.full((2, 1, 32, 32), 128, dtype=torch.uint8)
    ids = torch.tensor([1, 2])
    first = corrupt(grey, ids, "noise", 1, seed=0).double() - 128
    again = corrupt(grey, ids, "noise", 1, seed=0).double() - 128
    others = [
        first.flip(0),
        corrupt(grey, ids, "noise", 2, seed=0).double() - 128,
        corrupt(grey, ids, "noise", 1, seed=1).double() - 128,
    ]
    assert torch.equal(first, again)
    for other in others:
        together = torch.stack([first.flatten(), other.flatten()])
        assert abs(float(together.corrcoef()[0, 1])) < 0.1


@pytest.mark.parametrize(("height", "width"), [(224, 224), (96, 200)])
@pytest.mark.parametrize(("severity", "share"), [(1, 0.0125), (5, 0.045)])
def test_blur_agrees_with_scipy(height: int, width: int, severity: int, share: float) -> None:
    # Where the Gaussian is wide against a pixel, integrating over the pixel adds 1/12 of variance.
    deviation = (share**2 * min(height, width) ** 2 + 1 / 12) ** 0.5
    images = scenes(1, 2, height, width, torch.uint16)
    expected = gaussian_filter(
        images.numpy().astype(np.float64), (0, 0, deviation, deviation), mode="nearest"
    )
    found = corrupt(images, torch.tensor([0]), "blur", severity, 0)
    assert np.abs(found.numpy() - expected).max() < 0.003 * 65535


def test_blur_is_the_same_share_of_every_image() -> None:
    """An image of twice the side, blurred and then halved, is the image blurred."""
    small = scenes(1, 1, 48, 48, torch.uint8)
    large = small.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    ids = torch.tensor([0])
    blurred = corrupt(large, ids, "blur", 4, 0).float()
    halved = torch.nn.functional.avg_pool2d(blurred, 4)
    assert float((halved - corrupt(small, ids, "blur", 4, 0).float()).abs().mean()) < 1.0


def test_contrast_keeps_each_channels_mean_and_shrinks_its_deviation() -> None:
    images = scenes(3, 4, 40, 24, torch.uint16).double()
    stored = images.int().to(torch.uint16)
    for severity, left in enumerate((0.4, 0.3, 0.2, 0.1, 0.05), start=1):
        flat = corrupt(stored, torch.arange(3), "contrast", severity, 0).double()
        mean = images.mean(dim=(2, 3), keepdim=True)
        assert torch.allclose(flat, (images - mean) * left + mean, atol=0.5)


@pytest.mark.parametrize(("severity", "quality"), [(1, 25), (5, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(channels: int, severity: int, quality: int) -> None:
    images = scenes(1, channels, 37, 50, torch.uint8)
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy().squeeze())
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    expected = np.asarray(Image.open(buffer)).reshape(37, 50, channels).astype(int)
    found = corrupt(images, torch.tensor([0]), "jpeg", severity, 0)[0].permute(1, 2, 0).numpy()
    # Two builds of libjpeg round a coefficient here and there to its other neighbour.
    assert (np.abs(found.astype(int) - expected) <= 2).mean() > 0.85


def test_jpeg_codes_other_channel_counts_one_by_one_and_16_bits_as_8() -> None:
    bands, ids = scenes(2, 4, 24, 24, torch.uint8), torch.arange(2)
    found = corrupt(bands, ids, "jpeg", 2, 0)
    for band in range(4):
        alone = corrupt(bands[:, band : band + 1], ids, "jpeg", 2, 0)
        assert torch.equal(found[:, band : band + 1], alone)
    deep = (bands.int() * 257 + 100).clamp(max=65535).to(torch.uint16)
    assert torch.equal(corrupt(deep, ids, "jpeg", 2, 0).int(), found.int() * 257)
