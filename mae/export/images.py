"""Any folder of images, or one image, as an encoder takes them: decoded, resized, cropped."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae.data import reasons
from mae.data.crops import centre, covering_shape
from mae.data.decode import ImageFault, Pixels, decode, probe
from mae.data.files import ImageFiles, read_image
from mae.data.parallel import ordered_map
from mae.data.records import Rejected
from mae.data.resample import resample_batch, resample_one
from mae.errors import DataError
from mae.model.encoder import Architecture
from mae.pixels import PixelStatistics

MAX_PIXELS = 100_000_000

# The evaluation loader resamples images up to this many pixels by matrices.
_SMALL = 128 * 128


@dataclass(frozen=True)
class InputImage:
    """One image as the encoder takes it: uint8 or uint16 (C, H, W), and its path in the folder."""

    key: str
    pixels: NDArray


@dataclass(frozen=True)
class View:
    """How an encoder sees an image: its channels, bit depth, height, width and resize."""

    channels: int
    bit_depth: int
    height: int
    width: int
    resize: float
    max_pixels: int = MAX_PIXELS

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
        )


def input_images(path: Path, view: View, workers: int) -> Iterator[InputImage | Rejected]:
    """Yield every image below the folder `path` (or the image `path`), in the order of the keys.

    Threads decode ahead. What cannot be used comes as Rejected; DataError when there is no
    such folder, or no file in it that its suffix calls an image.
    """
    folder, names = _names(path)
    load = partial(_load, folder, view)
    yield from ordered_map(load, names, workers, ahead=16 * workers)


def _names(path: Path) -> tuple[Path, Iterator[str]]:
    if path.is_file():
        return path.parent, iter([path.name])
    if not path.is_dir():
        raise DataError(f"{path} does not exist: give a folder of images")
    names = iter(ImageFiles(path))
    first = next(names, None)
    if first is None:
        raise DataError(f"{path} holds no image files (archives must be unpacked first)")
    return path, chain([first], names)


def _load(folder: Path, view: View, name: str) -> InputImage | Rejected:
    key = _printable(name)
    data = read_image(folder / name, key, view.max_pixels)
    if isinstance(data, Rejected):
        return data
    try:
        header = probe(data)
        if header.pixels > view.max_pixels:
            raise ImageFault(
                reasons.TOO_LARGE,
                f"{header.height} x {header.width} pixels, above the limit of {view.max_pixels}",
            )
        pixels = decode(data, view.channels, view.bit_depth)
    except ImageFault as fault:
        return Rejected(key, fault.reason, fault.detail)
    return InputImage(key, np.ascontiguousarray(_see(pixels, view)))


def _see(pixels: Pixels, view: View) -> NDArray:
    """Return what the evaluation loader makes of an image (H, W, C): (C, height, width)."""
    height, width = pixels.shape[:2]
    output = (view.height, view.width)
    outer = covering_shape((height, width), output, view.resize)
    if height * width <= _SMALL:
        whole = np.array([[0, 0, height, width]])
        planes = pixels.transpose(2, 0, 1)[None]
        resized = resample_batch(planes, whole, np.zeros(1, bool), *outer)[0]
    else:
        resized = resample_one(pixels, (0, 0, height, width), *outer)
    top, left = centre(outer, output)
    return resized[:, top : top + view.height, left : left + view.width]


def _printable(name: str) -> str:
    """Return the name as valid text: bytes that are no UTF-8 appear as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
