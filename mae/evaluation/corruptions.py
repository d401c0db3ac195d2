"""What goes wrong with images, in five severities, after ImageNet-C (arXiv 1903.12261).

| corruption | what is done | constants of severities 1 to 5 |
|---|---|---|
| noise | Gaussian noise is added | deviation, of the full scale: .08 .12 .18 .26 .38, the paper's |
| blur | a Gaussian blurs | deviation, of the shorter side: .0125 .02 .0275 .035 .045 |
| contrast | pixels move towards their channel's mean | what is left: .4 .3 .2 .1 .05, the paper's |
| jpeg | coded as JPEG and decoded | quality: 25 18 15 10 7, the paper's |

The blur is a share of the side, so that images of 24 and of 224 pixels are treated alike: .0125 is
the first severity of CIFAR-10-C, 0.4 of 32 pixels. JPEG works in squares of 8 pixels whatever the
side, and is harder on small images.

A corrupted image is a function of (seed, corruption, severity, image id, pixels), whatever else is
in the batch.
"""

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.hashing import stream
from mae.model.noise import add_noise
from mae.params.evaluation import Corruption

SEVERITIES = (1, 2, 3, 4, 5)

_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
_BLUR = (0.0125, 0.02, 0.0275, 0.035, 0.045)
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
_JPEG_QUALITY = (25, 18, 15, 10, 7)

_WEIGHT_ONE = 1 << 16
_VALUES_AT_ONCE = 1 << 22  # the hashes that noise is made of are 8 bytes each


def corrupt(
    images: Tensor, ids: Tensor, corruption: Corruption, severity: int, seed: int
) -> Tensor:
    """Return stored images, uint8 or uint16 (N, C, H, W), corrupted: same shape, type and device.

    ids int64 (N,): the images' own. Raises ValueError for a severity that is not 1 to 5.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity} is not one of {SEVERITIES}")
    if corruption == "jpeg":
        return _coded(images, _JPEG_QUALITY[severity - 1])
    rows = max(1, _VALUES_AT_ONCE // images[:1].numel()) if len(images) else 1
    corrupted = torch.empty_like(images)
    for start in range(0, len(images), rows):
        part = slice(start, start + rows)
        if corruption == "noise":
            values = _noisy(images[part], ids[part], severity, seed)
        elif corruption == "blur":
            values = _blurred(images[part].double(), _BLUR[severity - 1])
        else:
            values = _flattened(images[part].double(), _CONTRAST[severity - 1])
        # Through int32, which uint16 can be made of on every device.
        whole = values.round_().clamp_(0, full_scale(images)).int()
        corrupted[part] = whole.to(images.dtype)
    return corrupted


def full_scale(images: Tensor) -> int:
    """Return the largest value that stored images can hold."""
    return torch.iinfo(images.dtype).max


def _noisy(images: Tensor, ids: Tensor, severity: int, seed: int) -> Tensor:
    key = stream(seed, "corruption:noise", severity)
    strength = _NOISE[severity - 1] * full_scale(images)
    return add_noise(images.float(), ids, key, 0, strength)


def _blurred(images: Tensor, share: float) -> Tensor:
    height, width = images.shape[-2:]
    deviation = share * min(height, width)
    rows, columns = (_blur_matrix(side, deviation, images) for side in (height, width))
    return rows @ images @ columns.mT


def _blur_matrix(side: int, deviation: float, like: Tensor) -> Tensor:
    """Return (side, side): row i holds what each pixel gives to pixel i, float64.

    A pixel gives the integral of the Gaussian over its width, an edge pixel also the tail beyond
    it, as if it went on for ever. Weights are whole multiples of 2^-16 that sum to exactly 1, so
    that sums of products of integers are exact and no order of summation shows.
    """
    pixel = torch.arange(side, dtype=torch.float64, device=like.device)
    between = pixel[1:] - 0.5
    below = torch.special.ndtr((between[None, :] - pixel[:, None]) / deviation)
    below = (below * _WEIGHT_ONE).round() / _WEIGHT_ONE
    ends = torch.zeros_like(pixel[:, None])
    return torch.cat([ends, below, ends + 1], dim=1).diff(dim=1)


def _flattened(images: Tensor, left: float) -> Tensor:
    mean = images.mean(dim=(2, 3), keepdim=True)
    return (images - mean) * left + mean


def _coded(images: Tensor, quality: int) -> Tensor:
    """Grey and colour of 8 bits as they are. Other channel counts are coded channel by channel as
    grey; 16 bits are brought to 8 and back, as JPEG has no more."""
    coarse = images.cpu().numpy()
    factor = full_scale(images) // 255
    if factor > 1:
        coarse = ((coarse.astype(np.int64) + factor // 2) // factor).astype(np.uint8)
    channels = coarse.shape[1]
    planes = coarse if channels == 3 else coarse.reshape(-1, 1, *coarse.shape[2:])
    coded = np.empty_like(planes)
    for plane, result in zip(planes, coded, strict=True):
        result[:] = _through_jpeg(plane.transpose(1, 2, 0), quality).transpose(2, 0, 1)
    fine = coded.reshape(coarse.shape).astype(np.int32) * factor
    return torch.from_numpy(fine).to(images.dtype).to(images.device)


def _through_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """(H, W, C) -> the same shape, C 1 or 3."""
    space = "RGB" if pixels.shape[2] == 3 else "GRAY"
    content = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality, space, colorsubsampling="420", fastdct=False
    )
    return simplejpeg.decode_jpeg(content, space, fastdct=False, fastupsample=False)
