"""Resizing and positions by arithmetic are what evaluation and the encoder themselves do."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mae.data.loading.views import evaluation_view, evaluation_views
from mae.export.preprocessing import AnyGridEncoder, Resizer
from mae.model.artifact import random_encoder
from mae.model.encoder import Architecture
from mae.model.positions import resample_positions

SIDES = st.integers(1, 60)


def photograph(height: int, width: int, channels: int) -> np.ndarray:
    """Smooth shapes with some grain, uint8 (H, W, C)."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / (9 + c)) + np.cos(columns / (13 - c)) for c in range(channels)]
    grain = np.random.default_rng(0).normal(0, 4, (height, width, channels))
    return (128 + 45 * np.stack(waves, axis=2) + grain).clip(0, 255).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@example(frame=(15, 34), image=(25, 20), resize=1.0, seed=0)  # half a pixel, to be rounded
@given(
    frame=st.tuples(SIDES, SIDES),
    image=st.tuples(SIDES, SIDES),
    resize=st.sampled_from([1.0, 1.143, 1.25, 2.0]),
    seed=st.integers(0, 99),
)
def test_small_images_are_resized_to_the_bit(
    frame: tuple[int, int], image: tuple[int, int], resize: float, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 3, *image), dtype=np.uint8)
    got = Resizer(*frame, resize, 255)(torch.from_numpy(pixels))
    assert got.shape == (2, 3, *frame)
    np.testing.assert_array_equal(got.numpy(), evaluation_views(pixels, *frame, resize))


def test_sixteen_bits_are_resized_to_the_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (1, 2, 50, 31)).astype(np.uint16)
    got = Resizer(16, 24, 1.25, 65535)(torch.from_numpy(pixels))
    np.testing.assert_array_equal(got.numpy(), evaluation_views(pixels, 16, 24, 1.25))


@pytest.mark.parametrize("shape", [(375, 500), (1200, 300), (200, 250)])
def test_photographs_differ_from_evaluation_by_a_level_at_most(shape: tuple[int, int]) -> None:
    pixels = photograph(*shape, 3)
    got = Resizer(224, 160, 1.143, 255)(torch.from_numpy(pixels.transpose(2, 0, 1))[None])[0]
    apart = np.abs(got.numpy() - evaluation_view(pixels, 224, 160, 1.143))
    assert apart.max() <= 1
    assert apart.mean() < 0.2


def test_photographs_differ_from_pillow_by_a_level_at_most() -> None:
    """Resized by hand: 256 on the shorter side of 375 x 500, the centre of 224 cut out."""
    pixels = photograph(375, 500, 3)
    whole = Image.fromarray(pixels).resize((341, 256), Image.Resampling.BICUBIC)
    left, top = round((341 - 224) / 2), 16
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1)
    got = Resizer(224, 224, 256 / 224, 255)(torch.from_numpy(pixels.transpose(2, 0, 1))[None])[0]
    apart = np.abs(got.numpy() - expected)
    assert apart.max() <= 1
    assert apart.mean() < 0.2


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize("grid", [(3, 4), (5, 4), (2, 9), (20, 3), (6, 1), (1, 1)])
def test_positions_of_any_grid(positions: str, grid: tuple[int, int]) -> None:
    architecture = Architecture(1, 12, 32, (4, 8), 16, 1, 2, 2.0, positions)
    encoder = random_encoder(architecture, seed=1)
    expected = encoder.positions_for(grid)
    encoder.__class__ = AnyGridEncoder
    torch.testing.assert_close(encoder.positions_for(grid), expected, atol=1e-7, rtol=0)


def test_learned_positions_of_a_single_column_differ_row_by_row() -> None:
    """torch's own resampling gives every row of a single column the first row's number."""
    table = torch.arange(16.0).reshape(4, 4)[:, :1].expand(4, 4).reshape(16, 1)
    column = resample_positions(table, (4, 4), (3, 1))[:, 0]
    beside = resample_positions(table, (4, 4), (3, 2)).reshape(3, 2)[:, 0]
    torch.testing.assert_close(column, beside)
    assert column[2] > column[1] > column[0]
