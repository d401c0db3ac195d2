"""A folder's images are seen exactly as evaluation sees them."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae.data.loading.loader import EvalLoader
from mae.data.loading.views import central
from mae.data.reader import ShardReader
from mae.data.records import Rejected
from mae.data.sharding.run import shard_dataset
from mae.export.images import InputImage, View, input_images, read_image
from tests.small_project import small_params

SMALL, LARGE = [(40, 60)] * 8, [(200, 150), (180, 400)] * 4
MIXED = [(40, 60), (33, 71)] * 4


@pytest.mark.parametrize(("shapes", "off_by"), [(SMALL, 0), (LARGE, 0), (MIXED, 1)])
def test_same_pixels_as_the_evaluation_loader(
    tmp_path: Path, shapes: list[tuple[int, int]], off_by: int
) -> None:
    """Small images of several shapes are rounded another way there: one level at most."""
    draw = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for index, shape in enumerate(shapes):
        pixels = draw.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).resize(shape[::-1]).save(tmp_path / "in" / f"{index}.png")
    params = small_params(tmp_path / "in")
    shard_dataset("images", params.data, 0, tmp_path / "shards")
    reader = ShardReader(tmp_path / "shards", "train")
    loader = EvalLoader(reader, height=16, width=24, resize=1.25, batch=3, workers=1, cache_mb=0)
    expected = dict(zip(reader.keys, torch.cat([b.images for b in loader]), strict=True))
    view = View(channels=1, bit_depth=8, height=16, width=24, resize=1.25)
    found = {one.key: one for one in input_images(tmp_path / "in", view, 2) if _is_image(one)}
    assert len(found) == len(shapes)
    for key, image in expected.items():
        difference = np.abs(found[key].pixels.astype(int) - image.numpy().astype(int))
        assert difference.max() <= off_by, key


def _is_image(found: InputImage | Rejected) -> bool:
    return isinstance(found, InputImage)


@pytest.mark.parametrize("shape", [(40, 60), (33, 71), (20, 21), (300, 401), (161, 90)])
@pytest.mark.parametrize("resize", [1.0, 1.14, 1.25, 1.5])
def test_what_a_model_crops_itself_has_the_same_centre(
    shape: tuple[int, int], resize: float
) -> None:
    draw = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(buffer, "PNG")
    view = View(channels=1, bit_depth=8, height=16, width=23, resize=resize)
    expected = read_image(buffer.getvalue(), view)
    around = read_image(buffer.getvalue(), replace(view, crops=False))
    assert around.shape == (1, round(16 * resize), round(23 * resize))
    np.testing.assert_array_equal(central(around, 16, 23), expected)


def test_too_many_pixels_are_never_decoded(tmp_path: Path) -> None:
    Image.new("L", (300, 200)).save(tmp_path / "a.png")
    view = View(1, 8, 16, 24, 1.0, max_pixels=50_000)
    (found,) = input_images(tmp_path, view, 1)
    assert isinstance(found, Rejected)
    assert found.reason == "too_large"
    assert "200 x 300" in found.detail
