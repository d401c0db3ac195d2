"""Which part of an image is seen: a random resized crop for training, the centre otherwise.

A crop is four whole numbers in pixels of the source, (top, left, height, width), and the output is
what that rectangle looks like at the output's height and width.
"""

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mae.data.decoding.jpeg import SHRINKS
from mae.hashing import uniform
from mae.params import AugmentParams

Crop = tuple[int, int, int, int]

# Up to this many pixels an image is small: its crops may start anywhere, and images of one shape
# are resampled all at once.
SMALL = 128 * 128

_TRIES = 10
_DRAWS = 2 * _TRIES + 3  # area and aspect for each try, top, left, flip


def random_crops(
    seed: int,
    purpose: str,
    epoch: int,
    ids: Tensor,
    heights: Tensor,
    widths: Tensor,
    augment: AugmentParams,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draw the standard random resized crop and flip of each image.

    Area is uniform, aspect (width / height) log-uniform; the first of ten tries that fits is
    taken, else the largest centred crop whose aspect is in range. ids, heights, widths: int64
    (N,). Returns crops int64 (N, 4) as (top, left, height, width) and flips bool (N,), functions
    of (seed, purpose, epoch, id) and the image's shape.
    """
    draws = uniform(seed, f"{purpose}:crop", epoch, ids, _DRAWS).numpy()
    height, width = heights.numpy()[:, None], widths.numpy()[:, None]
    low, high = augment.crop_area
    area = height * width * (low + draws[:, :_TRIES] * (high - low))
    log_low, log_high = (math.log(aspect) for aspect in augment.crop_aspect)
    aspect = np.exp(log_low + draws[:, _TRIES : 2 * _TRIES] * (log_high - log_low))
    crop_height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    crop_width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    fits = (crop_height > 0) & (crop_height <= height) & (crop_width > 0) & (crop_width <= width)
    first = fits.argmax(axis=1)[:, None]
    crop_height = np.take_along_axis(crop_height, first, axis=1)
    crop_width = np.take_along_axis(crop_width, first, axis=1)
    top = (draws[:, [2 * _TRIES]] * (height - crop_height + 1)).astype(np.int64)
    left = (draws[:, [2 * _TRIES + 1]] * (width - crop_width + 1)).astype(np.int64)
    crops = np.concatenate([top, left, crop_height, crop_width], axis=1)
    none_fits = ~fits.any(axis=1)
    if none_fits.any():
        central = _largest_central(height[none_fits, 0], width[none_fits, 0], augment.crop_aspect)
        crops[none_fits] = central
    flips = (draws[:, 2 * _TRIES + 2] < 0.5) & augment.flip
    return crops, flips


def _largest_central(
    height: NDArray[np.int64], width: NDArray[np.int64], aspects: tuple[float, float]
) -> NDArray[np.int64]:
    aspect = np.clip(width / height, *aspects)
    crop_height = np.minimum(height, np.rint(width / aspect).astype(np.int64)).clip(1)
    crop_width = np.minimum(width, np.rint(height * aspect).astype(np.int64)).clip(1)
    corner = [(height - crop_height) // 2, (width - crop_width) // 2]
    return np.stack([*corner, crop_height, crop_width], axis=1)


def aligned(crops: NDArray[np.int64], height: int, width: int) -> NDArray[np.int64]:
    """Move crops (N, 4) onto the grid of the coarsest reduction that still shows them well.

    A JPEG decoded at a half, a quarter or an eighth has pixels where the full image has squares
    of them. A crop with so many to spare for height x width starts and ends between such squares:
    it moves by less than one part in min(height, width), and nothing is shifted by the reduction.
    """
    step = np.ones((len(crops), 1), np.int64)
    large = crops[:, 2] * crops[:, 3] > SMALL
    for shrink in SHRINKS:
        spare = (crops[:, 2] >= shrink * height) & (crops[:, 3] >= shrink * width)
        step[large & spare] = shrink
    return crops // step * step


def reduction(crop: Crop, height: int, width: int) -> int:
    """Return by how much an image may be reduced before `crop` is shown at height x width.

    The crop stays at least that large, and its sides stay between pixels. Small ones stay whole.
    """
    fits = 1
    if crop[2] * crop[3] <= SMALL:
        return fits
    for shrink in SHRINKS:
        if crop[2] < shrink * height or crop[3] < shrink * width:
            break
        if not any(side % shrink for side in crop):
            fits = shrink
    return fits


def covering_shape(
    image: tuple[int, int], output: tuple[int, int], resize: float
) -> tuple[int, int]:
    """Return the (height, width) to resize an image to before the centre crop to `output`.

    The resized image just covers resize x output and keeps its aspect: with resize 256 / 224 and
    a square output, the shorter side becomes 256.
    """
    goals = [max(side, round(side * resize)) for side in output]
    scale = max(goal / side for goal, side in zip(goals, image, strict=True))
    height, width = (
        max(goal, round(side * scale)) for goal, side in zip(goals, image, strict=True)
    )
    return height, width


def centre(outer: tuple[int, int], inner: tuple[int, int]) -> tuple[int, int]:
    """Return the top left corner of an `inner` rectangle in the middle of an `outer` one."""
    return round((outer[0] - inner[0]) / 2), round((outer[1] - inner[1]) / 2)
