"""NumPy files (.npy) as images: uint8 or uint16 (H, W) or (H, W, C), any number of channels."""

import io
import struct
from functools import lru_cache
from tokenize import TokenError

import numpy as np

from mae.data import reasons
from mae.data.decoding.image import Found, ImageHeader, Pixels
from mae.data.reasons import ImageFault

Bytes = bytes | bytearray | memoryview

BEGINNING = b"\x93NUMPY"
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def probe(data: Bytes) -> ImageHeader:
    shape, _, dtype, _ = _header(data)
    channels = shape[2] if len(shape) == 3 else 1
    return ImageHeader(shape[0], shape[1], f"npy:{channels}", channels, dtype.itemsize * 8, "NPY")


def load(data: Bytes) -> Found:
    """Return the pixels without copying them where they are stored row by row (read-only)."""
    shape, column_major, dtype, start = _header(data)
    count = int(np.prod(shape))
    present = (len(data) - start) // dtype.itemsize
    if present < count:
        raise ImageFault(
            reasons.TRUNCATED,
            f"the NumPy file ends too early ({present} of {count} values are there)",
        )
    values = np.frombuffer(data, dtype, count, start)
    pixels = values.reshape(shape, order="F" if column_major else "C")
    pixels = pixels if dtype.isnative else pixels.astype(dtype.newbyteorder("="))
    return Found(pixels if pixels.ndim == 3 else pixels[..., None])


def dump(pixels: Pixels) -> bytes:
    """Return pixels (H, W, C) as a file: the same bytes for the same pixels."""
    buffer = io.BytesIO()
    np.lib.format.write_array(
        buffer, np.ascontiguousarray(pixels), version=(1, 0), allow_pickle=False
    )
    return buffer.getvalue()


def _header(data: Bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    wide = bytes(data[6:7]) > b"\x01"
    length = int.from_bytes(data[8 : 12 if wide else 10], "little") + (12 if wide else 10)
    return _parse(bytes(data[:length]))


@lru_cache(maxsize=1024)  # the images of a set share a few shapes
def _parse(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    stream = io.BytesIO(header)
    try:
        read = _READERS[np.lib.format.read_magic(stream)]
        shape, column_major, dtype = read(stream)
    except (ValueError, KeyError, TypeError, struct.error, SyntaxError, TokenError) as error:
        raise ImageFault(reasons.DAMAGED, f"the NumPy header cannot be read ({error})") from None
    fits = len(shape) in (2, 3) and min(shape) >= 0
    if not fits or dtype.kind != "u" or dtype.itemsize > 2:
        raise ImageFault(
            reasons.UNSUPPORTED,
            f"a NumPy array of {dtype} and shape {shape}: save uint8 or uint16 (H, W) or (H, W, C)",
        )
    return shape, column_major, dtype, stream.tell()
