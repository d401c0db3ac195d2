"""Mean and standard deviation of pixels, exact: sums are whole numbers of any length."""

from dataclasses import dataclass

import numpy as np

from mae.data.decode import Pixels
from mae.pixels import PixelStatistics

# Pixels summed at a time: 2^20 squares of 16 bits stay below 2^53, so float64 sums are exact.
_PIXELS_AT_ONCE = 1 << 20


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

    def __add__(self, other: "PixelSums") -> "PixelSums":
        return PixelSums(
            self.count + other.count,
            tuple(a + b for a, b in zip(self.total, other.total, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    def over_channels(self) -> "PixelSums":
        return PixelSums(self.count * len(self.total), (sum(self.total),), (sum(self.squares),))

    def statistics(self, bit_depth: int) -> PixelStatistics:
        """Return mean and population standard deviation of pixels scaled to 0..1."""
        full = 2**bit_depth - 1
        mean = [total / (self.count * full) for total in self.total]
        # n * sum of squares - square of the sum, in whole numbers: no cancellation.
        spread = [
            self.count * squares - total * total
            for total, squares in zip(self.total, self.squares, strict=True)
        ]
        std = [value**0.5 / (self.count * full) for value in spread]
        return PixelStatistics(tuple(mean), tuple(std), bit_depth)
