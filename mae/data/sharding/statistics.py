"""Mean and standard deviation of pixels, exact: sums are whole numbers of any length."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.data.decoding.image import Pixels

if TYPE_CHECKING:  # it brings torch, which the processes that examine images do without
    from mae.pixels import PixelStatistics

# Pixels summed at a time: 2^20 squares of 16 bits stay below 2^53, so float64 sums are exact.
_PIXELS_AT_ONCE = 1 << 20
_VALUES = np.arange(256, dtype=np.int64)


@dataclass(frozen=True)
class PixelSums:
    """Per channel: the number of pixels, their sum and the sum of their squares."""

    count: int
    total: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def none(cls, channels: int) -> "PixelSums":
        return cls(0, (0,) * channels, (0,) * channels)

    @classmethod
    def of(cls, pixels: Pixels) -> "PixelSums":
        """Sum up one image (H, W, C)."""
        if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
            return cls._of_histogram(pixels)
        height, width, channels = pixels.shape
        sums = cls.none(channels)
        rows = max(1, _PIXELS_AT_ONCE // width)
        for top in range(0, height, rows):
            part = pixels[top : top + rows].reshape(-1, channels).T.astype(np.float64, order="C")
            total = [int(plane.sum()) for plane in part]
            # Not `plane @ plane`: BLAS would start threads of its own in every decoding thread.
            squares = [int(np.einsum("i,i->", plane, plane)) for plane in part]
            sums += cls(part.shape[1], tuple(total), tuple(squares))
        return sums

    @classmethod
    def _of_histogram(cls, pixels: NDArray[np.uint8]) -> "PixelSums":
        """The same, several times as fast."""
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        counts = np.array(image.histogram(), dtype=np.int64).reshape(-1, 256)
        total, squares = counts @ _VALUES, counts @ _VALUES**2
        pixels_each = int(counts[0].sum())
        return cls(pixels_each, tuple(map(int, total)), tuple(map(int, squares)))

    def __add__(self, other: "PixelSums") -> "PixelSums":
        return PixelSums(
            self.count + other.count,
            tuple(a + b for a, b in zip(self.total, other.total, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    def over_channels(self) -> "PixelSums":
        return PixelSums(self.count * len(self.total), (sum(self.total),), (sum(self.squares),))

    @property
    def is_flat(self) -> bool:
        """Whether every channel has one value throughout."""
        return not any(self._spread())

    def moments(self, bit_depth: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return each channel's mean and population standard deviation, scaled to 0..1."""
        full = 2**bit_depth - 1
        mean = tuple(total / (self.count * full) for total in self.total)
        return mean, tuple(spread**0.5 / (self.count * full) for spread in self._spread())

    def statistics(self, bit_depth: int) -> "PixelStatistics":
        from mae.pixels import PixelStatistics

        return PixelStatistics(*self.moments(bit_depth), bit_depth)

    def _spread(self) -> list[int]:
        """n x sum of squares - square of the sum, in whole numbers: no cancellation."""
        return [
            self.count * squares - total * total
            for total, squares in zip(self.total, self.squares, strict=True)
        ]
