"""Mixup, cutmix and random erasing: drawn by hash beside the loader, applied on the device.

Semantics are timm's: mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) with one share and one
rectangle for each pair of images (its mode `pair`), erasing (arXiv 1708.04896) by noise on a
rectangle of 2 to 33 % of the image. Pairs are neighbours in the batch, which is in random order
anyway: so they are the same for any number of processes that each take an even number of images.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mae.hashing import uniform

_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 1 / 0.3)
_TRIES = 10


def partners(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the row that each of `count` rows is mixed with, int64 (count,).

    Neighbours are a pair; the last of an odd number is its own.
    """
    rows = torch.arange(count, device=device)
    return (rows ^ 1).where((rows ^ 1) < count, rows)


def draw_mixing(
    seed: int,
    purpose: str,
    epoch: int,
    ids: Tensor,
    alphas: tuple[float, float],
    shape: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Draw how each image of a batch is mixed with its partner.

    ids: int64 (N,). alphas: of mixup and of cutmix, 0 for none; where both are given, each pair
    gets one of them with the same chance. shape: (H, W). Returns shares float32 (N,), what is left
    of the image, and boxes int64 (N, 4), the (top, bottom, left, right) that cutmix takes from the
    partner: empty for mixup.
    """
    from scipy.special import betaincinv

    mixup, cutmix = alphas
    first = torch.arange(len(ids)) & ~1  # its id is the pair's
    choice, level, row, column = uniform(seed, f"{purpose}:mix", epoch, ids[first], 4).numpy().T
    cuts = choice < (0.5 if mixup else 1.0) if cutmix else np.zeros(len(ids), bool)
    # Inverse transform of a Beta distribution with both parameters alpha.
    shares = np.where(
        cuts, betaincinv(cutmix or 1, cutmix or 1, level), betaincinv(mixup or 1, mixup or 1, level)
    )
    boxes = _boxes(shares, row, column, shape) * cuts[:, None]
    areas = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    shares = np.where(cuts, 1 - areas / (shape[0] * shape[1]), shares)
    return torch.from_numpy(shares).float(), torch.from_numpy(boxes)


def _boxes(
    shares: np.ndarray, row: np.ndarray, column: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Return rectangles (N, 4) of about 1 - share of the area, cut off at the image's edge."""
    edges = []
    for side, draws in zip(shape, (row, column), strict=True):
        extent = (side * np.sqrt(1 - shares)).astype(np.int64)
        centre = (draws * side).astype(np.int64)
        edges += [
            (centre - extent // 2).clip(0, side),
            (centre + (extent + 1) // 2).clip(0, side),
        ]
    return np.stack(edges, axis=1)


def mix_images(images: Tensor, shares: Tensor, boxes: Tensor) -> Tensor:
    """Mix float images (N, C, H, W) with their partners; see draw_mixing."""
    inside = _inside(boxes, images.shape[-2], images.shape[-1])
    is_cut = (boxes[:, 1] > boxes[:, 0])[:, None, None, None]
    # A cutmix whose rectangle came out empty leaves the image whole: its share is 1.
    own = torch.where(is_cut, (~inside).to(images.dtype), shares[:, None, None, None])
    return own * images + (1 - own) * images[partners(len(images), images.device)]


def mix_targets(labels: Tensor, classes: int, smoothing: float, shares: Tensor) -> Tensor:
    """Return soft targets float32 (N, classes), each summing to one, of labels int64 (N,)."""
    exact = F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes
    other = exact[partners(len(labels), labels.device)]
    return shares[:, None] * exact + (1 - shares[:, None]) * other


def draw_erasing(
    seed: int, purpose: str, epoch: int, ids: Tensor, probability: float, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Draw which images of a batch are erased, int64 (E,), and where: boxes int64 (E, 4) as (top,
    bottom, left, right).

    The first of ten tries that is smaller than the image (H, W) is taken; where none is, nothing
    is erased.
    """
    draws = uniform(seed, f"{purpose}:erase", epoch, ids, 2 * _TRIES + 3).numpy()
    height, width = shape
    area = height * width * _between(draws[:, :_TRIES], *_ERASED_AREA)
    logs = _between(draws[:, _TRIES : 2 * _TRIES], *map(math.log, _ERASED_ASPECT))
    heights = np.rint(np.sqrt(area * np.exp(logs))).astype(np.int64)
    widths = np.rint(np.sqrt(area / np.exp(logs))).astype(np.int64)
    fits = (heights < height) & (widths < width)
    first = fits.argmax(axis=1)[:, None]
    tall = np.take_along_axis(heights, first, axis=1)[:, 0]
    wide = np.take_along_axis(widths, first, axis=1)[:, 0]
    top = (draws[:, 2 * _TRIES + 1] * (height - tall + 1)).astype(np.int64)
    left = (draws[:, 2 * _TRIES + 2] * (width - wide + 1)).astype(np.int64)
    erased = (draws[:, 2 * _TRIES] < probability) & fits.any(axis=1)
    boxes = np.stack([top, top + tall, left, left + wide], axis=1)[erased]
    return torch.from_numpy(erased.nonzero()[0]), torch.from_numpy(boxes)


def erase(images: Tensor, rows: Tensor, boxes: Tensor, noise: Tensor) -> Tensor:
    """Put noise (E, C, H, W) into the boxes (E, 4) of the images (N, C, H, W) in `rows` (E,)."""
    inside = _inside(boxes, images.shape[-2], images.shape[-1])
    return images.index_copy(0, rows, torch.where(inside, noise, images[rows]))


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels lie in boxes (N, 4), bool (N, 1, H, W)."""
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    y, x = (torch.arange(side, device=boxes.device) for side in (height, width))
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _between(draws: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + draws * (high - low)
