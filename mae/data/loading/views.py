"""What an encoder sees of an image in evaluation: resized to cover its frame, centre cut out."""

import numpy as np
from numpy.typing import NDArray

from mae.data.decoding.image import Pixels
from mae.data.loading.crops import SMALL, centre, covering_shape
from mae.data.loading.resample import resample_batch, resample_one


def evaluation_view(pixels: Pixels, height: int, width: int, resize: float) -> NDArray:
    """Show an image (H, W, C) as uint8 or uint16 (C, height, width).

    It is resized to just cover `resize` x (height, width), its aspect kept.
    """
    full = pixels.shape[0], pixels.shape[1]
    if full[0] * full[1] <= SMALL:
        return evaluation_views(pixels.transpose(2, 0, 1)[None], height, width, resize)[0]
    outer = covering_shape(full, (height, width), resize)
    return central(resample_one(pixels, (0, 0, *full), *outer), height, width)


def evaluation_views(images: NDArray, height: int, width: int, resize: float) -> NDArray:
    """Show small images of one shape (N, C, H, W) as (N, C, height, width)."""
    full = images.shape[2], images.shape[3]
    outer = covering_shape(full, (height, width), resize)
    crops = np.tile([0, 0, *full], (len(images), 1))
    resized = resample_batch(images, crops, np.zeros(len(images), bool), *outer)
    return central(resized, height, width)


def central(planes: NDArray, height: int, width: int) -> NDArray:
    """Cut the middle height x width out of (..., H, W)."""
    top, left = centre((planes.shape[-2], planes.shape[-1]), (height, width))
    return planes[..., top : top + height, left : left + width]
