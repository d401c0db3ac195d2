"""The form in which an image lies in a shard: as found, encoded anew, or as raw pixels."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from mae.data.decoding import npy
from mae.data.decoding.decode import decode
from mae.data.decoding.image import Pixels
from mae.params import DataParams

# For PNG the least effort that still filters; for WebP its default. Pillow's own defaults may
# change with a release, and with them the bytes of a shard.
_PNG_EFFORT = 6
_WEBP_EFFORT = 4


class Stored(NamedTuple):
    """What lies in the shard. height, width: pixels of the upright image as stored."""

    content: bytes
    height: int
    width: int


def stored_form(content: bytes, height: int, width: int, data: DataParams) -> Stored:
    """Return an image as data.store asks for it; height and width are those found, upright.

    Equal input gives equal bytes, without any metadata of the file found. Raises ImageFault.
    """
    store = data.store
    if store.form == "found":
        return Stored(content, height, width)
    pixels = decode(
        content,
        data.channels,
        data.bit_depth,
        bands=data.bands,
        depth_range=data.depth_range,
    )
    pixels = _shrink(pixels, store.short_side)
    if store.form == "raw":
        encoded = npy.dump(pixels)
    else:
        encoded = _encode(pixels, store.codec, store.quality)
    return Stored(encoded, *pixels.shape[:2])


def stored_shape(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Return height and width once the shorter side is `short_side`; smaller images stay."""
    shorter = min(height, width)
    if short_side is None or shorter <= short_side:
        return height, width
    longer = (2 * max(height, width) * short_side + shorter) // (2 * shorter)
    return (short_side, longer) if height <= width else (longer, short_side)


def _shrink(pixels: Pixels, short_side: int | None) -> Pixels:
    height, width = pixels.shape[:2]
    shape = stored_shape(height, width, short_side)
    if shape == (height, width):
        return pixels
    from mae.data.loading.resample import resample_one  # brings torch, which most stores do without

    return resample_one(pixels, (0, 0, height, width), *shape).transpose(1, 2, 0)


def _encode(pixels: Pixels, codec: str, quality: int) -> bytes:
    """Return pixels (H, W, 1 to 4) as JPEG, WebP or PNG, whose subset data.store has checked."""
    plain = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image = Image.fromarray(plain)
    buffer = io.BytesIO()
    if codec == "jpeg":
        image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    elif codec == "webp":
        image.save(buffer, "WEBP", quality=quality, method=_WEBP_EFFORT)
    else:
        image.save(buffer, "PNG", compress_level=_PNG_EFFORT)
    return buffer.getvalue()
