"""The random resized crop has torchvision's distribution and never leaves the image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from mae.data.crops import covering_shape, random_crops
from mae.params import AugmentParams


def augment(
    area: tuple[float, float] = (0.2, 1.0), aspect: tuple[float, float] = (0.75, 4 / 3)
) -> AugmentParams:
    return AugmentParams(crop_area=area, crop_aspect=aspect, flip=True)


def crops_of(
    count: int, height: int, width: int, params: AugmentParams, epoch: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    shape = torch.full((count,), height), torch.full((count,), width)
    return random_crops(0, "test", epoch, torch.arange(count), *shape, params)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: tuple(sorted(pair))),
    st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(lambda pair: tuple(sorted(pair))),
)
def test_crops_lie_inside(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> None:
    crops, _ = crops_of(50, height, width, augment(area, aspect))
    top, left, crop_height, crop_width = crops.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (crop_height > 0).all()
    assert (crop_width > 0).all()
    assert (top + crop_height <= height).all()
    assert (left + crop_width <= width).all()


@pytest.mark.parametrize(("height", "width"), [(224, 224), (120, 300), (500, 60)])
def test_distribution_is_torchvisions(height: int, width: int) -> None:
    params = augment()
    crops, flips = crops_of(6000, height, width, params)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array(
        [
            RandomResizedCrop.get_params(image, params.crop_area, params.crop_aspect)
            for _ in range(6000)
        ]
    )
    levels = np.linspace(0.05, 0.95, 19)
    for column in range(4):
        ours = np.quantile(crops[:, column], levels)
        reference = np.quantile(theirs[:, column], levels)
        assert np.abs(ours - reference).max() <= 0.035 * max(height, width)
    assert abs(flips.mean() - 0.5) < 0.03


def test_what_never_fits_becomes_the_largest_central_crop() -> None:
    crops, _ = crops_of(5, 10, 1000, augment((0.9, 1.0)))
    assert crops.tolist() == [[0, 493, 10, 13]] * 5


def test_crops_depend_on_epoch_and_id_but_not_on_company() -> None:
    params = augment()
    first, _ = crops_of(64, 100, 100, params)
    again, _ = crops_of(8, 100, 100, params)
    later, _ = crops_of(64, 100, 100, params, epoch=1)
    assert np.array_equal(first[:8], again)
    assert not np.array_equal(first, later)
    assert len(np.unique(first, axis=0)) > 60


@given(
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.floats(1, 1.5),
)
def test_covering_shape_covers_and_keeps_the_aspect(
    image: tuple[int, int], output: tuple[int, int], resize: float
) -> None:
    shape = covering_shape(image, output, resize)
    goals = [max(side, round(side * resize)) for side in output]
    assert all(side >= goal for side, goal in zip(shape, goals, strict=True))
    assert any(side == goal for side, goal in zip(shape, goals, strict=True))
    scale = max(goal / side for goal, side in zip(goals, image, strict=True))
    assert np.abs(np.array(shape) - scale * np.array(image)).max() <= 1


def test_covering_shape_of_the_usual_recipe() -> None:
    assert covering_shape((375, 500), (224, 224), 256 / 224) == (256, 341)
    assert covering_shape((32, 32), (32, 32), 1.0) == (32, 32)
