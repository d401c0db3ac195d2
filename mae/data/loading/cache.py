"""Images decoded as far as they are needed, and kept where memory allows.

What comes back depends on the stored bytes and on the part asked for alone, never on what happens
to be kept: a part that can be decoded at a reduced resolution always is.
"""

import threading
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mae.data.decoding import npy
from mae.data.decoding.image import Pixels
from mae.data.decoding.jpeg import Bytes, JpegFrame, decode_jpeg, read_frame
from mae.data.loading.crops import Crop, reduction
from mae.data.reader import ShardReader

_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class _Whole:
    """A whole image; reducible: whether parts of it may be decoded at a reduced resolution."""

    pixels: Pixels
    reducible: bool


@dataclass
class _Kept:
    images: dict[int, _Whole] = field(default_factory=dict)
    bytes: int = 0


_lock = threading.Lock()
_kept: WeakKeyDictionary[ShardReader, _Kept] = WeakKeyDictionary()


class PixelCache:
    """The images of a reader. Keeps the first ones until the process holds `cache_mb` of them.

    Nothing is ever thrown out: an epoch visits every image once, so whatever share is kept saves
    its share of the decoding, while a least-recently-used rule would save nothing. Raw images are
    not kept, since they need no decoding.
    """

    def __init__(self, reader: ShardReader, cache_mb: int) -> None:
        self._reader = reader
        self._limit = cache_mb * _MEGABYTE
        statistics = reader.info.statistics
        self._channels = statistics.channels
        self._heights, self._widths = reader.heights.numpy(), reader.widths.numpy()
        self._dtype = np.dtype(np.uint8 if statistics.bit_depth == 8 else np.uint16)
        # Chosen bands and other bit depths are the full decoder's work.
        self._partial = (
            self._channels in (1, 3) and statistics.bit_depth == 8 and statistics.bands is None
        )
        with _lock:
            self._mine = _kept.setdefault(reader, _Kept())

    def pixels(self, index: int) -> Pixels:
        """Return image `index` decoded, (H, W, C), not to be written to."""
        found = self._mine.images.get(index)
        if found is not None:
            return found.pixels
        content = self._reader.view(index)
        return self._whole(index, content, self.frame(index, content))

    def stack(self, indices: Tensor) -> NDArray:
        """Return images of one shape together: (N, C, H, W)."""
        return np.stack([self.pixels(index) for index in indices.tolist()]).transpose(0, 3, 1, 2)

    def part(self, index: int, crop: Crop, height: int, width: int) -> tuple[Pixels, Crop]:
        """Return pixels (H, W, C) on which `crop` can be seen, and where on them it lies.

        They are those of the image, or of a reduced one on which the crop still is at least
        height x width and starts and ends between pixels. Not to be written to.
        """
        shrink = reduction(crop, height, width)
        found = self._mine.images.get(index)
        if found is not None and (shrink == 1 or not found.reducible):
            return found.pixels, crop
        content = self._reader.view(index)
        frame = self.frame(index, content)
        if frame is None or (shrink == 1 and self._has_room(index)):
            return self._whole(index, content, frame), crop
        top, left, crop_height, crop_width = crop
        pixels = decode_jpeg(
            content, frame, self._channels, bottom=top + crop_height, shrink=shrink
        )
        where = top // shrink, left // shrink, crop_height // shrink, crop_width // shrink
        return pixels, where

    def frame(self, index: int, content: Bytes) -> JpegFrame | None:
        """Return the frame of a JPEG that can be decoded in part to the pixels wanted."""
        frame = read_frame(content) if self._partial else None
        if frame is None or frame.components > self._channels:
            return None
        upright = frame.height == self._heights[index] and frame.width == self._widths[index]
        return frame if upright else None

    def _whole(self, index: int, content: Bytes, frame: JpegFrame | None) -> Pixels:
        raw = self._raw(content)
        if raw is not None:
            return raw
        if frame is None:
            pixels = self._reader.pixels(index)
        else:
            pixels = decode_jpeg(content, frame, self._channels)
        self._keep(index, _Whole(pixels, reducible=frame is not None))
        return pixels

    def _raw(self, content: Bytes) -> Pixels | None:
        """Return the stored pixels themselves where they are those wanted, without a copy."""
        if bytes(content[: len(npy.BEGINNING)]) != npy.BEGINNING:
            return None
        pixels = npy.load(content).pixels
        wanted = pixels.dtype == self._dtype and pixels.shape[2] == self._channels
        return pixels if wanted and pixels.flags.c_contiguous else None

    def _has_room(self, index: int) -> bool:
        size = int(self._heights[index]) * int(self._widths[index]) * self._channels
        with _lock:
            return _held() + size <= self._limit

    def _keep(self, index: int, whole: _Whole) -> None:
        with _lock:
            fits = _held() + whole.pixels.nbytes <= self._limit
            if fits and index not in self._mine.images:
                self._mine.images[index] = whole
                self._mine.bytes += whole.pixels.nbytes


def _held() -> int:
    return sum(kept.bytes for kept in _kept.values())
