"""What every reader of a format gives: a header, and pixels in the image's own channels."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.unsignedinteger[Any]]  # uint8 or uint16


@dataclass(frozen=True)
class ImageHeader:
    """What the header says, before decoding. Height and width are those of the upright image.

    bit_depth: 8, or the bits that the file says its wider samples have (16, or 12 of a camera);
    their values stay as they are. orientation: EXIF's, 1 (upright as stored) to 8.
    """

    height: int
    width: int
    mode: str
    channels: int
    bit_depth: int
    format: str
    orientation: int = 1

    @property
    def pixels(self) -> int:
        return self.height * self.width


class Found(NamedTuple):
    """Upright pixels (H, W, c) as the file has them.

    has_alpha: the last channel is alpha, not multiplied into the others. spare: the number of
    channels after the colours of which the file does not say what they are.
    """

    pixels: Pixels
    has_alpha: bool = False
    spare: int = 0


def turn(pixels: Pixels, orientation: int) -> Pixels:
    """Undo EXIF's orientation: 2-4 mirror or half turn, 5-8 swap height and width as well."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
