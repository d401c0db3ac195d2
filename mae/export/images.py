"""Any folder of images, or one image, as an encoder takes them: decoded, resized, cropped."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae.data import reasons
from mae.data.decoding.decode import decode, probe
from mae.data.loading.parallel import ordered_map
from mae.data.loading.views import evaluation_view
from mae.data.reasons import ImageFault
from mae.data.records import Record, Rejected
from mae.data.sources.files import LocalFile, byte_limit
from mae.data.sources.items import to_item
from mae.data.sources.names import archive_stem, printable
from mae.data.sources.opening import Opening, open_tree
from mae.data.sources.trees import FilesBelow
from mae.errors import DataError
from mae.model.encoder import Architecture
from mae.pixels import PixelStatistics

MAX_PIXELS = 100_000_000

# The evaluation loader resamples images up to this many pixels by matrices.


@dataclass(frozen=True)
class InputImage:
    """One image as the encoder takes it: uint8 or uint16 (C, H, W), and its path in the folder."""

    key: str
    pixels: NDArray


@dataclass(frozen=True)
class View:
    """How an encoder sees an image: how a file becomes pixels, and which part of them."""

    channels: int
    bit_depth: int
    height: int
    width: int
    resize: float
    max_pixels: int = MAX_PIXELS
    bands: tuple[int, ...] | None = None
    depth_range: tuple[int, int] = (0, 65535)

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        statistics: PixelStatistics,
        resize: float,
        max_pixels: int = MAX_PIXELS,
    ) -> "View":
        return cls(
            channels=architecture.channels,
            bit_depth=statistics.bit_depth,
            height=architecture.height,
            width=architecture.width,
            resize=resize,
            max_pixels=max_pixels,
            bands=statistics.bands,
            depth_range=statistics.depth_range,
        )


def input_images(path: Path, view: View, workers: int) -> Iterator[InputImage | Rejected]:
    """Yield every image below the folder, zip or tar `path`, or the image `path`, sorted by key.

    Threads decode ahead. What cannot be used comes as Rejected; DataError when there is no
    such folder, or no file in it that its suffix calls an image.
    """
    load = partial(_load, view)
    yield from ordered_map(load, _items(path, view), workers, ahead=16 * workers)


def _items(path: Path, view: View) -> Iterator[Record | Rejected]:
    limit = byte_limit(view.max_pixels)
    if path.is_file() and not archive_stem(path.name):
        yield to_item(printable(path.name), path.name, LocalFile(str(path), limit))
        return
    tree = open_tree(str(path), Opening(limit, "give a folder, zip or tar of images"))
    yield from tree.strays
    seen = len(tree.strays)
    for name, location in FilesBelow(tree):
        seen += 1
        yield to_item(printable(name), name, location)
    if not seen:
        raise DataError(f"{path} holds no image files")


def _load(view: View, item: Record | Rejected) -> InputImage | Rejected:
    if isinstance(item, Rejected):
        return item
    try:
        data = item.image.read()
        header = probe(data)
        if header.pixels > view.max_pixels:
            raise ImageFault(
                reasons.TOO_LARGE,
                f"{header.height} x {header.width} pixels, above the limit of {view.max_pixels}",
            )
        pixels = decode(
            data,
            view.channels,
            view.bit_depth,
            bands=view.bands,
            depth_range=view.depth_range,
        )
    except ImageFault as fault:
        return Rejected(item.id, fault.reason, fault.detail)
    seen = evaluation_view(pixels, view.height, view.width, view.resize)
    return InputImage(item.id, np.ascontiguousarray(seen))
