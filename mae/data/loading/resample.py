"""Antialiased bicubic resampling (Keys, a = -0.5, as in Pillow and torchvision).

Two roads, chosen by the data alone so that no runtime setting can change a pixel:
- `resample_batch`: many small images of one shape at once, as two products with interpolation
  matrices. Weights are whole multiples of 2^-16, so every product and sum is exact in float64,
  and the result does not depend on BLAS, threads or the images beside it.
- `resample_one`: one image of any shape, by torch: its uint8 kernel for up to four channels of 8
  bits, in float64 otherwise.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from mae.data.decoding.image import Pixels
from mae.data.loading.crops import Crop

_WEIGHT_ONE = 1 << 16
_SUPPORT = 2.0
_A = -0.5


def resample_batch(
    images: NDArray, crops: NDArray[np.int64], flips: NDArray[np.bool_], height: int, width: int
) -> NDArray:
    """Crop and resize images (N, C, H, W) -> (N, C, height, width) of the same integer type.

    crops: int64 (N, 4), (top, left, height, width); flips: bool (N,), mirrored left to right.
    """
    whole = np.array([0, 0, *images.shape[2:]])
    if images.shape[2:] == (height, width) and (crops == whole).all():
        return np.where(flips[:, None, None, None], images[..., ::-1], images)
    rows = _weights(crops[:, 0], crops[:, 2], images.shape[2], height)
    columns = _weights(crops[:, 1], crops[:, 3], images.shape[3], width)
    columns[flips] = columns[flips, ::-1]
    across = np.matmul(images.astype(np.float64), columns[:, None].transpose(0, 1, 3, 2))
    return _to_integers(np.matmul(rows[:, None], across), images.dtype)


def resample_one(
    pixels: Pixels, crop: Crop, height: int, width: int, flip: bool = False
) -> NDArray:
    """Crop (top, left, height, width) and resize one image (H, W, C) -> (C, height, width).

    flip: mirrored left to right.
    """
    top, left, crop_height, crop_width = crop
    part = pixels[top : top + crop_height, left : left + crop_width]
    if part.shape[:2] == (height, width):
        return part[:, ::-1].transpose(2, 0, 1) if flip else part.transpose(2, 0, 1)
    by_bytes = part.dtype == np.uint8 and part.shape[2] <= 4
    if not by_bytes:
        part = part.astype(np.float64)
    elif not part.flags.writeable:
        part = part.copy()  # torch warns of memory that must not be written to
    planes = torch.from_numpy(part).permute(2, 0, 1)[None]
    resized = interpolate(planes, (height, width), mode="bicubic", antialias=True)[0]
    seen = (resized.flip(-1) if flip else resized).numpy()
    return seen if by_bytes else _to_integers(seen, pixels.dtype)


def _weights(
    start: NDArray[np.int64], extent: NDArray[np.int64], before: int, after: int
) -> NDArray[np.float64]:
    """Return matrices (N, after, before) that resample [start, start + extent) to `after` pixels.

    Rows sum to exactly 1 in multiples of 2^-16; pixels outside the crop have no weight.
    """
    scale = extent[:, None] / after
    stretch = np.maximum(scale, 1.0)
    centres = scale * (np.arange(after) + 0.5)
    # Pillow's window: whole pixels around the centre, cut off at the edge of the crop.
    low = np.maximum((centres - _SUPPORT * stretch + 0.5).astype(np.int64), 0)
    high = np.minimum((centres + _SUPPORT * stretch + 0.5).astype(np.int64), extent[:, None])
    taps = int((high - low).max())
    pixel = low[..., None] + np.arange(taps)
    distance = (pixel + 0.5 - centres[..., None]) / stretch[..., None]
    weights = np.where(pixel < high[..., None], _keys(distance), 0.0)
    weights /= weights.sum(axis=2, keepdims=True)
    whole = np.rint(weights * _WEIGHT_ONE)
    largest = np.abs(distance).argmin(axis=2)[..., None]
    corrected = np.take_along_axis(whole, largest, axis=2)
    corrected += _WEIGHT_ONE - whole.sum(axis=2, keepdims=True)
    np.put_along_axis(whole, largest, corrected, axis=2)
    # Windows shorter than `taps` may run past the last pixel, with weight 0: give them room.
    matrices = np.zeros((len(start), after, before + taps))
    np.put_along_axis(matrices, pixel + start[:, None, None], whole / _WEIGHT_ONE, axis=2)
    return matrices[..., :before]


def _keys(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel."""
    x = np.abs(x)
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _to_integers(values: NDArray[np.float64], dtype: np.dtype) -> NDArray:
    return np.clip(np.floor(values + 0.5), 0, np.iinfo(dtype).max).astype(dtype)
