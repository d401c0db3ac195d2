"""The panel shows the image, what was hidden, and says what the reconstruction was given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae.model.autoencoder import build_autoencoder
from mae.pixels import PixelStatistics
from mae.report.pictures import displayed
from mae.report.reconstruction import describe, draw_reconstructions
from tests.small_project import small_params


def panel(
    tmp_path: Path, channels: int, bit_depth: int = 8, count: int = 3, **model
) -> Image.Image:
    params = small_params(tmp_path, **model).model
    autoencoder = build_autoencoder(params, channels, seed=0)
    statistics = PixelStatistics((0.5,) * channels, (0.25,) * channels, bit_depth)
    draw = np.random.default_rng(0)
    shape = (count, channels, params.height, params.width)
    images = draw.integers(0, 2**bit_depth, shape).astype(f"uint{bit_depth}")
    path = tmp_path / "panel.png"
    draw_reconstructions(
        autoencoder, statistics, torch.from_numpy(images), torch.arange(count), path
    )
    again = tmp_path / "again.png"
    draw_reconstructions(
        autoencoder, statistics, torch.from_numpy(images), torch.arange(count), again
    )
    assert path.read_bytes() == again.read_bytes()
    return Image.open(path)


@pytest.mark.parametrize(
    ("channels", "bit_depth", "count"), [(1, 8, 1), (3, 8, 3), (4, 16, 8), (6, 8, 5)]
)
def test_any_channels_and_depth(tmp_path: Path, channels: int, bit_depth: int, count: int) -> None:
    picture = panel(tmp_path, channels, bit_depth, count)
    blocks = 2 if count > 4 else 1
    assert picture.width > blocks * 3 * 112 * 24 // 16


def test_masked_column_hides_the_share_it_says(tmp_path: Path) -> None:
    """Patches of 4 x 4 at a scale of 7: a hidden one is one flat grey, a random one is not."""
    picture = np.asarray(panel(tmp_path, 1, count=1).convert("L")).astype(int)
    left, top = 6 + 168 + 6, 20 + 2
    cell = picture[top : top + 112, left : left + 168]
    patches = cell.reshape(4, 28, 6, 28).transpose(0, 2, 1, 3).reshape(24, -1)
    assert sum(len(set(patch.tolist())) == 1 for patch in patches) == 18
    original = picture[top : top + 112, 6 : 6 + 168]
    assert (cell == original).mean() == pytest.approx(0.25, abs=0.01)


def test_caption_says_whether_true_statistics_were_used(tmp_path: Path) -> None:
    normalised = small_params(tmp_path, target="normalized_pixels").model
    plain = small_params(tmp_path, target="pixels").model
    with_truth = describe(build_autoencoder(normalised, 1, 0), 1)
    without = describe(build_autoencoder(plain, 6, 0), 6)
    assert "18 of 24 patches hidden (75%)" in with_truth
    assert "taken from the true patch" in with_truth
    assert "nothing was taken" in without
    assert "Of 6 channels the first 3 are shown" in without


def test_displayed_pixels() -> None:
    planes = np.array([0.0, 0.5, 1.0, 1.7])[:, None, None] * np.ones((4, 2, 3))
    assert displayed(planes)[0, 0].tolist() == [0, 128, 255]
    assert displayed(planes[1:2])[0, 0].tolist() == [128, 128, 128]
    assert displayed(planes[3:])[1, 2].tolist() == [255, 255, 255]
    assert displayed(planes).shape == (2, 3, 3)
