"""Images as an exported model takes them: decoded, resized, cropped."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae.data import reasons
from mae.data.decoding.decode import decode, probe
from mae.data.decoding.image import Pixels
from mae.data.loading.crops import centre, covering_shape
from mae.data.loading.parallel import ordered_map
from mae.data.loading.views import evaluation_view
from mae.data.reasons import ImageFault
from mae.data.records import Record, Rejected
from mae.export.listing import list_images
from mae.model.encoder import Architecture
from mae.pixels import PixelStatistics

MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class InputImage:
    """One image as the encoder takes it: uint8 or uint16 (C, H, W), and its path in the folder."""

    key: str
    pixels: NDArray


@dataclass(frozen=True)
class View:
    """How an encoder sees an image: how a file becomes pixels, and which part of them.

    crops: the centre, height x width, is cut out; False leaves that to the model, and shows the
    part that `resize` covers around it.
    """

    channels: int
    bit_depth: int
    height: int
    width: int
    resize: float
    max_pixels: int = MAX_PIXELS
    bands: tuple[int, ...] | None = None
    depth_range: tuple[int, int] = (0, 65535)
    crops: bool = True

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


def input_images(path: Path | str, view: View, workers: int) -> Iterator[InputImage | Rejected]:
    """Yield every image of `path` (as list_images takes it), sorted by key.

    Threads decode ahead. What cannot be used comes as Rejected; DataError when there is no
    such folder, or no file in it that its suffix calls an image.
    """
    listing = list_images(path, view)
    yield from ordered_map(partial(load_item, view), listing, workers, ahead=16 * workers)


def load_item(view: View, item: Record | Rejected) -> InputImage | Rejected:
    """Return a listed image as the model takes it, or why it cannot be used."""
    if isinstance(item, Rejected):
        return item
    try:
        return InputImage(item.id, read_image(item.image.read(), view))
    except ImageFault as fault:
        return Rejected(item.id, fault.reason, fault.detail)


def read_image(data: bytes, view: View) -> NDArray:
    """Return an encoded image as `view` shows it, (C, H, W) uint8 or uint16.

    Raises ImageFault. One of more than max_pixels is known by its header and never decoded.
    """
    header = probe(data)
    if header.pixels > view.max_pixels:
        raise ImageFault(
            reasons.TOO_LARGE,
            f"{header.height} x {header.width} pixels, above the limit of {view.max_pixels}",
        )
    pixels = decode(
        data, view.channels, view.bit_depth, bands=view.bands, depth_range=view.depth_range
    )
    return np.ascontiguousarray(_shown(pixels, view))


def _shown(pixels: Pixels, view: View) -> NDArray:
    frame = view.height, view.width
    if view.crops:
        return evaluation_view(pixels, *frame, view.resize)
    around = covering_shape(frame, frame, view.resize)
    outer = covering_shape((pixels.shape[0], pixels.shape[1]), frame, view.resize)
    whole = evaluation_view(pixels, *outer, 1.0)
    # Such that the centre of this part is, to the pixel, that of the whole.
    inside = zip(centre(outer, frame), centre(around, frame), strict=True)
    top, left = (in_whole - in_part for in_whole, in_part in inside)
    return whole[:, top : top + around[0], left : left + around[1]]
