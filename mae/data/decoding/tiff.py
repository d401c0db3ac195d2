"""TIFF that Pillow refuses or narrows: many bands, planes, 16-bit colour, 12 bits, BigTIFF.

Read by tifffile and imagecodecs, of several pages the first. All other TIFF is left to Pillow:
palettes, bilevel, CMYK, YCbCr, Lab and plain 8-bit grey and colour.
"""

import io
import logging
from typing import Any

import numpy as np

from mae.data import reasons
from mae.data.decoding.image import Found, ImageHeader, Pixels, turn
from mae.data.reasons import ImageFault

BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF's

_ORIENTATION = 274
_ASSOCIATED_ALPHA, _ALPHA = 1, 2
_AXES = ("YX", "YXS", "SYX")
# None, CCITT, LZW, JPEG, deflate, PackBits, LZMA and Zstandard: not WebP, JPEG 2000, LERC, ...
_PILLOWS_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946, 34925, 50000}

# What is wrong with a file is said in the manifest, not once for each tag in the log.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def probe(data: bytes) -> ImageHeader | None:
    """Return the header of the first page, or None where Pillow is to read the file.

    Raises ImageFault for pixels that are no 8- or 16-bit whole numbers.
    """
    page = _first_page(data)
    if page is None or not _is_ours(page):
        return None
    orientation = _orientation(page)
    height, width = page.imagelength, page.imagewidth
    if orientation >= 5:
        height, width = width, height
    samples = page.samplesperpixel
    return ImageHeader(
        height, width, f"tiff:{samples}", samples, page.bitspersample, "TIFF", orientation
    )


def load(data: bytes) -> Found | None:
    """Decode the first page, upright, or return None where Pillow is to read the file."""
    page = _first_page(data)
    if page is None or not _is_ours(page):
        return None
    _check_complete(page, len(data))
    try:
        pixels = page.asarray(maxworkers=1)
    except Exception as error:  # codecs raise errors of their own for damaged data
        raise ImageFault(reasons.DAMAGED, f"TIFF cannot be decoded ({error})") from None
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if page.axes == "YX":
        pixels = pixels[..., None]
    elif page.axes == "SYX":
        pixels = pixels.transpose(1, 2, 0)
    if _kind(page) == "MINISWHITE":
        pixels = np.asarray((1 << page.bitspersample) - 1 - pixels, pixels.dtype)
    has_alpha, spare = _extras(page)
    if has_alpha and page.extrasamples[-1] == _ASSOCIATED_ALPHA:
        pixels = _divide_by_alpha(pixels)
    return Found(turn(pixels, _orientation(page)), has_alpha, spare)


def _first_page(data: bytes) -> Any | None:
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return file.pages[0]
    except Exception:  # damaged tags: Pillow may know better, or says what is wrong
        return None


def _is_ours(page: Any) -> bool:
    """Raises ImageFault where nobody can read the pixels as whole numbers of up to 16 bits."""
    dtype, bits, samples = page.dtype, page.bitspersample, page.samplesperpixel
    if dtype is None or dtype.kind in "fc":
        raise ImageFault(
            reasons.UNSUPPORTED,
            f"floating-point pixels ({dtype or f'{bits} bits'}), which may hold NaN and have no "
            "fixed range: save as 8- or 16-bit integers",
        )
    kind = _kind(page)
    has_more = samples > _colours(page) and not _extras(page)[0]
    if kind not in ("MINISBLACK", "MINISWHITE", "RGB"):
        if bits > 8 or samples > 4:
            raise ImageFault(
                reasons.UNSUPPORTED,
                f"{samples} channels of {bits} bits as {kind}: save as RGB or grey",
            )
        return False
    if samples == 1 and dtype.itemsize > 1 and bits in (16, 32) and kind == "MINISBLACK":
        return False
    ours = (
        bits > 8
        or has_more
        or dtype.kind == "i"
        or (dtype.kind == "u" and page.compression not in _PILLOWS_COMPRESSIONS)
    )
    if ours and (dtype.kind != "u" or not 8 <= bits <= 16 or page.axes not in _AXES):
        raise ImageFault(
            reasons.UNSUPPORTED,
            f"pixels of {dtype} and axes {page.axes}: save as 8- or 16-bit unsigned integers, "
            "height x width x channels",
        )
    return ours


def _extras(page: Any) -> tuple[bool, int]:
    """Return whether the last channel is alpha, and how many follow RGB without a meaning.

    Several grey channels are bands, of which none may be left out unasked.
    """
    extras = tuple(int(one) for one in page.extrasamples)
    more = page.samplesperpixel - _colours(page)
    if more == 1 and extras in ((_ALPHA,), (_ASSOCIATED_ALPHA,)):
        return True, 0
    return False, max(0, more) if _kind(page) == "RGB" else 0


def _kind(page: Any) -> str:
    """Return what the channels are, by name; a number where the file names nothing known."""
    return str(getattr(page.photometric, "name", page.photometric))


def _colours(page: Any) -> int:
    return 3 if _kind(page) == "RGB" else 1


def _orientation(page: Any) -> int:
    value = page.tags.valueof(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_complete(page: Any, length: int) -> None:
    """tifffile reads zeros where a part is missing."""
    ends = [
        start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)
    ]
    if len(page.dataoffsets) != len(page.databytecounts) or max(ends, default=0) > length:
        raise ImageFault(
            reasons.TRUNCATED,
            f"the pixels end at byte {max(ends, default=0)}, the file at {length}",
        )


def _divide_by_alpha(pixels: Pixels) -> Pixels:
    full = np.iinfo(pixels.dtype).max
    alpha = pixels[..., -1:].astype(np.uint64)
    colour = (pixels[..., :-1].astype(np.uint64) * full + alpha // 2) // np.maximum(alpha, 1)
    return np.concatenate([colour.clip(0, full).astype(pixels.dtype), pixels[..., -1:]], axis=2)
