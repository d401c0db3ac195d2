import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mae.model.patches import gather_patches, grid_of, patchify, unpatchify

SHAPES = st.tuples(
    st.integers(1, 3),  # images
    st.sampled_from([1, 3, 4, 13]),  # channels
    st.integers(1, 4),  # patches down
    st.integers(1, 4),  # patches across
    st.integers(1, 3),  # pixels down a patch
    st.integers(1, 5),  # pixels across a patch
)


@given(SHAPES)
def test_patches_are_the_blocks_of_the_image(shape: tuple[int, ...]) -> None:
    n, c, hp, wp, ph, pw = shape
    images = torch.arange(n * c * hp * ph * wp * pw).reshape(n, c, hp * ph, wp * pw)
    patches = patchify(images, (ph, pw))
    assert patches.shape == (n, hp * wp, c * ph * pw)
    array = images.numpy()
    for row in range(hp):
        for column in range(wp):
            block = array[:, :, row * ph : (row + 1) * ph, column * pw : (column + 1) * pw]
            np.testing.assert_array_equal(patches[:, row * wp + column], block.reshape(n, -1))
    assert torch.equal(unpatchify(patches, (ph, pw), (hp, wp)), images)


def test_gathering_picks_patches_by_index() -> None:
    patches = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    indices = torch.tensor([[4, 0], [1, 1]])
    picked = gather_patches(patches, indices)
    assert torch.equal(picked[0], patches[0, [4, 0]])
    assert torch.equal(picked[1], patches[1, [1, 1]])


def test_images_that_do_not_fit_are_refused() -> None:
    assert grid_of(torch.zeros(1, 1, 8, 12), (4, 3)) == (2, 4)
    with pytest.raises(ValueError, match="8 x 12 cannot be cut into patches of 4 x 5"):
        grid_of(torch.zeros(1, 1, 8, 12), (4, 5))
