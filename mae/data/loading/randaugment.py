"""RandAugment (arXiv 1909.13719) with timm's operations and specifications, drawn by hash.

timm's own draws come from the global generators of Python and NumPy, so what an image looks like
would depend on the threads that load it. Here the choice of operations, their strengths and signs
are functions of (seed, purpose, epoch, sample id).
"""

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mae.errors import ParamsError
from mae.hashing import uniform
from mae.pixels import PixelStatistics

_SPECIFICATION = re.compile(r"rand(-((m|n|inc|mmax)\d+|(p|mstd)\d+(\.\d+)?|t[a-z0-9]+))*")
_TOP_LEVEL = 10.0  # timm's scale of magnitudes

# Operations whose sign timm throws a coin for: the value that changes nothing, and how far from it
# the top level is.
_SIGNED = {
    "Rotate": (0.0, 30.0),
    "ShearX": (0.0, 0.3),
    "ShearY": (0.0, 0.3),
    "TranslateXRel": (0.0, 0.45),
    "TranslateYRel": (0.0, 0.45),
    "ColorIncreasing": (1.0, 0.9),
    "ContrastIncreasing": (1.0, 0.9),
    "BrightnessIncreasing": (1.0, 0.9),
    "SharpnessIncreasing": (1.0, 0.9),
}
_LEAST_FACTOR = 0.1  # of the four last

_PICK, _APPLY, _RADIUS, _ANGLE, _SIGN = range(5)  # what is drawn for each operation of an image


class RandAugment:
    """uint8 images (N, C, H, W) -> the same, each after some random operations.

    specification: timm's, as in `rand-m9-mstd0.5-inc1`. Raises ParamsError for one that it does
    not know, and for images that are not 8-bit with 1 or 3 channels: the operations are Pillow's.
    """

    def __init__(self, specification: str, statistics: PixelStatistics) -> None:
        if statistics.channels not in (1, 3) or statistics.bit_depth != 8:
            raise ParamsError(
                "evaluate.finetune.augment.randaugment takes images of 8 bits with 1 or 3 "
                f"channels, and these have {statistics.bit_depth} bits and {statistics.channels} "
                "channels: set it to null; mixup, cutmix and erasing take any"
            )
        self._policy = _parsed(specification, statistics)
        self._layers = self._policy.num_layers
        if self._policy.choice_weights is not None:  # then none is drawn twice
            self._layers = min(self._layers, len(self._policy.ops))

    def __call__(
        self, images: NDArray[np.uint8], ids: Tensor, seed: int, purpose: str, epoch: int
    ) -> None:
        """Change the images (N, C, H, W) with ids int64 (N,) in their place."""
        operations = len(self._policy.ops)
        count = 5 * self._layers + operations
        draws = uniform(seed, f"{purpose}:randaugment", epoch, ids, count).numpy()
        for row, drawn in zip(images, draws, strict=True):
            picture = _to_picture(row)
            layers = drawn[:-operations].reshape(self._layers, 5)
            for index, layer in zip(self._chosen(layers, drawn[-operations:]), layers, strict=True):
                picture = self._applied(self._policy.ops[index], picture, layer)
            row[:] = _to_row(picture)

    def _chosen(self, layers: NDArray, keys: NDArray) -> list[int]:
        """Return which operations an image gets: with replacement, without where weighted."""
        weights = self._policy.choice_weights
        if weights is None:
            return [int(pick * len(self._policy.ops)) for pick in layers[:, _PICK]]
        # The lowest of exponential waiting times: as drawn one by one by weight (Efraimidis and
        # Spirakis, 2006).
        waits = -np.log1p(-keys) / weights
        return waits.argsort(kind="stable")[: self._layers].tolist()

    def _applied(self, operation: Any, picture: Image.Image, layer: NDArray) -> Image.Image:
        if layer[_APPLY] >= operation.prob:
            return picture
        arguments = level_arguments(operation, magnitude(operation, layer), layer[_SIGN] < 0.5)
        return operation.aug_fn(picture, *arguments, **operation.kwargs)


def magnitude(operation: Any, layer: NDArray) -> float:
    """Return how strong an operation is: normal about what is specified, or uniform up to it."""
    wanted, deviation = float(operation.magnitude), operation.magnitude_std
    if deviation == math.inf:
        wanted *= layer[_RADIUS]
    elif deviation > 0:
        radius = math.sqrt(-2 * math.log1p(-layer[_RADIUS]))  # Box and Muller
        wanted += deviation * radius * math.cos(2 * math.pi * layer[_ANGLE])
    return float(max(0.0, min(wanted, operation.magnitude_max or _TOP_LEVEL)))


def level_arguments(operation: Any, level: float, negative: bool) -> tuple[Any, ...]:
    """Return what an operation is called with at a level, in the direction drawn."""
    if operation.name in _SIGNED:
        neutral, reach = _SIGNED[operation.name]
        value = neutral + (-1 if negative else 1) * level / _TOP_LEVEL * reach
        return (max(_LEAST_FACTOR, value) if neutral else value,)
    if operation.level_fn is None:
        return ()
    arguments = tuple(operation.level_fn(level, operation.hparams))
    # timm posterises to no bits at all at the end of its scale, which Pillow refuses.
    return (max(1, arguments[0]),) if operation.name.startswith("Posterize") else arguments


def _parsed(specification: str, statistics: PixelStatistics) -> Any:
    """Return timm's RandAugment of a specification, for its operations and their settings."""
    from timm.data.auto_augment import rand_augment_transform

    mean = tuple(round(255 * value) for value in statistics.mean)
    settings = {
        "img_mean": mean if len(mean) == 3 else mean[0],  # fills what was outside the image
        "interpolation": Image.Resampling.BICUBIC,
    }
    known = _SPECIFICATION.fullmatch(specification)
    # timm takes the name of a set of operations that it does not know for the usual one.
    named = re.findall(r"-t([a-z0-9]+)", specification)
    if not known or not {"weights", "3a", "3aw"}.issuperset(named):
        raise ParamsError(
            f"evaluate.finetune.augment.randaugment: '{specification}' is no specification of "
            "RandAugment: write it as in rand-m9-mstd0.5-inc1, or null for none"
        )
    return rand_augment_transform(specification, settings)


def _to_picture(row: NDArray[np.uint8]) -> Image.Image:
    if len(row) == 1:
        return Image.fromarray(row[0])
    return Image.fromarray(np.ascontiguousarray(row.transpose(1, 2, 0)))


def _to_row(picture: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
