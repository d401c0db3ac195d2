"""The random resized crop has torchvision's distribution and never leaves the image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from mae.data.loading.crops import SMALL, aligned, covering_shape, random_crops, reduction
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


# --- reductions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(900, 1200), (3000, 2000), (500, 700)])
def test_aligned_crops_keep_the_distribution(height: int, width: int) -> None:
    params = augment()
    crops, _ = crops_of(4000, height, width, params)
    moved = aligned(crops, 224, 224)
    assert (moved != crops).any(axis=1).mean() > 0.05
    # Eight pixels are the coarsest grid: on it they are the crops as drawn.
    assert np.array_equal(moved // 8, crops // 8)
    torch.manual_seed(1)
    image = torch.empty(1).expand(1, height, width)
    theirs = np.array(
        [
            RandomResizedCrop.get_params(image, params.crop_area, params.crop_aspect)
            for _ in range(4000)
        ]
    )
    for column in range(4):
        # 1.63 x sqrt(2 / n): two samples of one distribution differ by more once in 100 times.
        distance = ks_distance(moved[:, column] // 8, theirs[:, column] // 8)
        assert distance < 1.63 * np.sqrt(2 / 4000)
    ours, others = (c[:, 2] * c[:, 3] / (height * width) for c in (moved, theirs))
    assert ks_distance(ours, others) < 1.63 * np.sqrt(2 / 4000) + 8 / 500


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    levels = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(x), levels, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


@given(
    st.lists(st.tuples(*[st.integers(0, 3000)] * 2, *[st.integers(1, 3000)] * 2), min_size=1),
    st.integers(1, 300),
    st.integers(1, 300),
)
def test_aligned_crops_can_be_reduced_as_far_as_they_are_large(
    crops: list[tuple[int, int, int, int]], height: int, width: int
) -> None:
    before = np.array(crops)
    after = aligned(before, height, width)
    edges_before, edges_after = before[:, :2] + before[:, 2:], after[:, :2] + after[:, 2:]
    assert (edges_after <= edges_before).all()
    for crop, moved in zip(before, after, strict=True):
        spare = min(crop[2] // height, crop[3] // width)
        small = crop[2] * crop[3] <= SMALL
        possible = 1 if small else max(s for s in (1, 2, 4, 8) if s <= max(spare, 1))
        if moved[2] * moved[3] > SMALL:
            assert reduction(tuple(moved.tolist()), height, width) == possible
        assert not (moved % possible).any()
        assert (moved[2:] >= possible * np.array([height, width])).all() or possible == 1


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        ((0, 0, 900, 900), 4),
        ((0, 0, 896, 896), 4),
        ((0, 0, 895, 896), 1),
        ((0, 0, 894, 896), 2),
        ((0, 2, 896, 896), 2),
        ((1, 0, 896, 896), 1),
        ((0, 0, 448, 5000), 2),
        ((0, 0, 4000, 4000), 8),
        ((0, 0, 447, 448), 1),
    ],
)
def test_reductions(crop: tuple[int, int, int, int], expected: int) -> None:
    assert reduction(crop, 224, 224) == expected
    assert reduction((0, 0, 128, 128), 16, 16) == 1
