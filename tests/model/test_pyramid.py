"""The feature pyramid: its strides, the shapes of its maps, and where their cells lie."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae.model.pyramid import FeaturePyramid, pyramid_strides


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        ((16, 16), (4, 8, 16, 32)),  # ViTDet
        ((14, 14), (3.5, 7, 14, 28)),
        ((8, 8), (2, 4, 8, 16)),
        ((4, 4), (2, 4, 8)),
        ((2, 2), (2, 4)),
        ((1, 1), (1, 2)),
        ((16, 8), (2, 4, 8, 16)),
    ],
)
def test_strides_follow_from_the_patch(patch: tuple[int, int], strides: tuple[float, ...]) -> None:
    assert pyramid_strides(patch) == strides
    assert FeaturePyramid(32, patch, 8).strides == strides


@settings(deadline=None, max_examples=25)
@given(
    patch=st.sampled_from([(4, 4), (8, 8), (8, 4), (4, 16)]),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
)
def test_levels_cover_any_grid(patch: tuple[int, int], rows: int, columns: int) -> None:
    pyramid = FeaturePyramid(16, patch, 8)
    height, width = rows * patch[0], columns * patch[1]
    levels = pyramid(torch.randn(2, 16, rows, columns))
    assert len(levels) == len(pyramid.strides)
    for level, stride in zip(levels, pyramid.strides, strict=True):
        assert level.shape == (2, 8, -(-height // stride), -(-width // stride))


def test_cells_stay_in_place() -> None:
    """What changes in one patch changes the cells there, and none at the far end."""
    torch.manual_seed(0)
    pyramid = FeaturePyramid(16, (4, 4), 8).eval()
    patches = torch.randn(1, 16, 6, 10)
    changed = patches.clone()
    changed[0, :, 1, 8] += 3
    for level, other, stride in zip(
        pyramid(patches), pyramid(changed), pyramid.strides, strict=True
    ):
        difference = (level - other).abs().sum(dim=(0, 1))
        row, column = int((1 + 0.5) * 4 / stride), int((8 + 0.5) * 4 / stride)
        assert difference[row, column] > 0
        assert difference[:, : column - 2 - int(4 // stride)].sum() == 0


def test_every_weight_learns() -> None:
    pyramid = FeaturePyramid(16, (16, 16), 8)
    loss = sum(
        level.square().mean() * (1 + level[:, 0].mean())
        for level in pyramid(torch.randn(1, 16, 4, 6))
    )
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pyramid.parameters())
