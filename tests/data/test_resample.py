"""Both ways of resampling agree with torch's antialiased bicubic on float."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from mae.data.loading.resample import resample_batch, resample_one
from tests.data import zoo

SHAPES = [((40, 30), (24, 36)), ((32, 32), (32, 32)), ((100, 80), (16, 16)), ((9, 9), (31, 17))]


def reference(pixels: np.ndarray, crop: list[int], height: int, width: int) -> np.ndarray:
    top, left, crop_height, crop_width = crop
    part = pixels[top : top + crop_height, left : left + crop_width]
    planes = torch.from_numpy(part.astype(np.float64)).permute(2, 0, 1)[None]
    resized = interpolate(planes, (height, width), mode="bicubic", antialias=True)[0]
    return resized.clamp(0, np.iinfo(pixels.dtype).max).numpy()


def some_crops(height: int, width: int) -> list[list[int]]:
    return [
        [0, 0, height, width],
        [1, 2, height - 2, width - 3],
        [height // 3, 0, height // 2, width // 2],
        [0, width - 3, 4, 3],
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("before", "after"), SHAPES)
def test_batch_is_torchs_antialiased_bicubic(
    dtype: type, before: tuple[int, int], after: tuple[int, int]
) -> None:
    random = np.random.default_rng(0)
    crops = some_crops(*before)
    images = random.integers(0, np.iinfo(dtype).max + 1, (len(crops), *before, 2)).astype(dtype)
    flips = np.array([False, True, False, True])
    planes = images.transpose(0, 3, 1, 2)
    found = resample_batch(planes, np.array(crops), flips, *after)
    assert found.dtype == dtype
    # Half a level of rounding, and what weights in steps of 2^-16 may add.
    allowed = 0.5 + 2e-4 * np.iinfo(dtype).max
    for image, crop, flip, ours in zip(images, crops, flips, found, strict=True):
        expected = reference(image, crop, *after)
        expected = expected[..., ::-1] if flip else expected
        assert np.abs(ours - expected).max() <= allowed


@pytest.mark.parametrize(("before", "after"), SHAPES)
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_one_is_torchs_antialiased_bicubic(
    channels: int, before: tuple[int, int], after: tuple[int, int]
) -> None:
    pixels = zoo.pattern(*before, channels)
    for crop in some_crops(*before):
        ours = resample_one(pixels, tuple(crop), *after).astype(int)
        expected = reference(pixels, crop, *after)
        # The uint8 kernel also rounds between its two passes.
        assert np.abs(ours - expected).max() <= 2
        assert np.abs(ours - expected).mean() <= 0.5


def test_the_two_ways_agree() -> None:
    pixels = zoo.pattern(48, 40)
    crops = np.array(some_crops(48, 40))
    many = np.stack([pixels.transpose(2, 0, 1)] * len(crops))
    batch = resample_batch(many, crops, np.zeros(len(crops), bool), 32, 24)
    for crop, ours in zip(crops, batch, strict=True):
        one = resample_one(pixels, tuple(crop.tolist()), 32, 24)
        assert np.abs(one.astype(int) - ours).max() <= 1


def test_an_image_does_not_change_with_its_company() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50, 3, 30, 30), dtype=np.uint8)
    top = random.integers(0, 10, (50, 2))
    crops = np.concatenate([top, random.integers(5, 20, (50, 2))], axis=1)
    flips = random.random(50) < 0.5
    together = resample_batch(images, crops, flips, 24, 20)
    for n in range(50):
        alone = resample_batch(images[n : n + 1], crops[n : n + 1], flips[n : n + 1], 24, 20)
        assert np.array_equal(alone[0], together[n])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_flat_image_stays_flat(dtype: type) -> None:
    full = np.iinfo(dtype).max
    images = np.full((3, 1, 33, 47), full, dtype)
    crops = np.array([[0, 0, 33, 47], [3, 5, 20, 9], [10, 10, 11, 30]])
    found = resample_batch(images, crops, np.zeros(3, bool), 28, 19)
    assert (found == full).all()


@pytest.mark.parametrize(("before", "after"), SHAPES)
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint16, 1), (np.uint16, 13), (np.uint8, 6)])
def test_one_of_many_bits_or_bands_is_rounded_once(
    dtype: type, channels: int, before: tuple[int, int], after: tuple[int, int]
) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, np.iinfo(dtype).max + 1, (*before, channels)).astype(dtype)
    for crop in some_crops(*before):
        found = resample_one(pixels, tuple(crop), *after)
        assert found.dtype == dtype
        assert np.abs(found - reference(pixels, crop, *after)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_a_flip_mirrors_what_is_seen(channels: int) -> None:
    pixels = zoo.pattern(50, 40, channels)
    pixels.setflags(write=False)
    for crop in ((0, 0, 50, 40), (3, 5, 30, 20)):
        plain = resample_one(pixels, crop, 30, 20)
        flipped = resample_one(pixels, crop, 30, 20, flip=True)
        assert np.array_equal(flipped, plain[..., ::-1])
