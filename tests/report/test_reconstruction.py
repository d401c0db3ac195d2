"""The panel shows the image, what was hidden, where it errs, and what it was given, in words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae.model.autoencoder import build_autoencoder
from mae.pixels import PixelStatistics
from mae.report.pictures import displayed
from mae.report.reconstruction import describe, draw_reconstructions, heat
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
    assert picture.width > blocks * 4 * 112 * 24 // 16


def test_masked_column_hides_the_share_it_says(tmp_path: Path) -> None:
    """Patches of 4 x 4 at a scale of 7: a hidden one is one flat grey, a random one is not."""
    picture = np.asarray(panel(tmp_path, 1, count=1).convert("L")).astype(int)
    left, top = 6 + 168 + 6, 20 + 2
    cell = picture[top : top + 112, left : left + 168]
    patches = cell.reshape(4, 28, 6, 28).transpose(0, 2, 1, 3).reshape(24, -1)
    assert sum(len(set(patch.tolist())) == 1 for patch in patches) == 18
    original = picture[top : top + 112, 6 : 6 + 168]
    assert (cell == original).mean() == pytest.approx(0.25, abs=0.01)


def test_error_column_is_black_where_nothing_was_hidden(tmp_path: Path) -> None:
    picture = np.asarray(panel(tmp_path, 1, count=1).convert("RGB")).astype(int)
    top, second, fourth = 20 + 2, 6 + 168 + 6, 6 + 3 * (168 + 6)
    masked = picture[top : top + 112, second : second + 168, 0]
    errors = picture[top : top + 112, fourth : fourth + 168].sum(axis=2)
    patches = masked.reshape(4, 28, 6, 28).transpose(0, 2, 1, 3).reshape(24, -1)
    by_patch = errors.reshape(4, 28, 6, 28).transpose(0, 2, 1, 3).reshape(24, -1)
    hidden = np.array([len(set(patch.tolist())) == 1 for patch in patches])
    assert (by_patch[~hidden] == 0).all()
    assert (by_patch[hidden].max(axis=1) > 0).all()


def test_heat_grows_lighter_with_the_error() -> None:
    colours = heat(np.linspace(0, 1.2, 61)[None])[0].astype(int)
    assert colours[0].tolist() == [0, 0, 0]
    assert colours[50].tolist() == colours[60].tolist() == [252, 255, 230]
    lightness = colours[:51] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()


def test_labels_stand_above_the_rows(tmp_path: Path) -> None:
    params = small_params(tmp_path).model
    autoencoder = build_autoencoder(params, 1, 0)
    images = torch.zeros(2, 1, 16, 24, dtype=torch.uint8)
    statistics = PixelStatistics((0.5,), (0.25,))

    def height(labels: list[str] | None) -> int:
        path = tmp_path / "panel.png"
        draw_reconstructions(autoencoder, statistics, images, torch.arange(2), path, labels)
        return Image.open(path).height

    assert height(["one", "two" * 200]) == height(None) + 2 * 20


CAPTIONS = [
    ("normalized_pixels", "true patch statistics were used"),
    ("pixels", "predicts pixels; nothing was taken"),
    ({"kind": "pca", "components": 5}, "the first 5 principal components of each patch; nothing"),
    ({"kind": "tokens", "codes": 9}, "which of 9 typical patches comes nearest"),
]


@pytest.mark.parametrize(("target", "words"), CAPTIONS)
def test_caption_says_whether_true_statistics_were_used(
    target: Any, words: str, tmp_path: Path
) -> None:
    autoencoder = build_autoencoder(small_params(tmp_path, target=target).model, 6, 0)
    mask = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
    mask[..., :3, :] = True
    mask = mask.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    said = describe(autoencoder, mask)
    assert words in said
    assert ("true patch statistics" in said) == (target == "normalized_pixels")
    assert "18 of 24 patches hidden (75%)" in said
    assert "Of 6 channels the first 3 are shown" in said
    assert "Nothing was hidden" in describe(autoencoder, torch.zeros_like(mask))


def test_displayed_pixels() -> None:
    planes = np.array([0.0, 0.5, 1.0, 1.7])[:, None, None] * np.ones((4, 2, 3))
    assert displayed(planes)[0, 0].tolist() == [0, 128, 255]
    assert displayed(planes[1:2])[0, 0].tolist() == [128, 128, 128]
    assert displayed(planes[3:])[1, 2].tolist() == [255, 255, 255]
    assert displayed(planes).shape == (2, 3, 3)
