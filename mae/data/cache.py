"""Decoded images kept in memory, shared by all loaders of a reader."""

import threading
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from mae.data.decode import Pixels
from mae.data.reader import ShardReader

_MEGABYTE = 1 << 20


@dataclass
class _Kept:
    images: dict[int, Pixels] = field(default_factory=dict)
    bytes: int = 0


_lock = threading.Lock()
_kept: WeakKeyDictionary[ShardReader, _Kept] = WeakKeyDictionary()


class PixelCache:
    """Keeps the first images decoded until the process holds `cache_mb` of them.

    Nothing is ever thrown out: an epoch visits every image once, so whatever share is kept saves
    its share of the decoding, while a least-recently-used rule would save nothing.
    """

    def __init__(self, reader: ShardReader, cache_mb: int) -> None:
        self._reader = reader
        self._limit = cache_mb * _MEGABYTE
        with _lock:
            self._mine = _kept.setdefault(reader, _Kept())

    def pixels(self, index: int) -> Pixels:
        """Return image `index` decoded, (H, W, C), not to be written to."""
        found = self._mine.images.get(index)
        if found is not None:
            return found
        pixels = self._reader.pixels(index)
        with _lock:
            held = sum(kept.bytes for kept in _kept.values())
            if index not in self._mine.images and held + pixels.nbytes <= self._limit:
                self._mine.images[index] = pixels
                self._mine.bytes += pixels.nbytes
        return pixels
