"""JPEGs decoded no further than a view needs them: in rows and in resolution.

libjpeg-turbo (simplejpeg), which releases the interpreter lock. Two savings:
- Rows below the view are left out, by telling the decoder of a lower image: the entropy-coded
  rows come from top to bottom. Those above the cut are the very pixels of a full decode.
- Halves, quarters and eighths come straight from the DCT coefficients, aligned to the whole
  image: pixel (y, x) shows rows y * shrink to (y + 1) * shrink. Other scales of libjpeg's cost
  more than they save.
"""

import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Bytes = bytes | bytearray | memoryview

SHRINKS = (2, 4, 8)

_BLOCK = 8  # pixels of a side
_HUFFMAN = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_OTHER_FRAMES = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_PROGRESSIVE, _SCAN, _APP1 = 0xC2, 0xDA, 0xE1
_ORIENTATION = 0x0112
_SEGMENT = struct.Struct(">BBH")  # 0xFF, marker, length
_SIZES = struct.Struct(">BHHB")  # precision, height, width, components


@dataclass(frozen=True)
class JpegFrame:
    """What the header of a JPEG of 8-bit grey or colour says.

    rows_at_once: pixel rows that are coded together, or None where the file has several scans,
    each over the whole image. height_at: where in the file the height stands.
    """

    height: int
    width: int
    components: int
    rows_at_once: int | None
    height_at: int


def read_frame(content: Bytes) -> JpegFrame | None:
    """Return the frame, or None for what must be decoded otherwise.

    That is: other formats, CMYK, arithmetic or lossless coding, a height that follows the pixels,
    and images that EXIF or XMP turns.
    """
    if bytes(content[:3]) != b"\xff\xd8\xff":
        return None
    frame = None
    at = 2
    while at + 5 <= len(content):
        begins, marker, length = _SEGMENT.unpack_from(content, at)
        if begins != 0xFF:
            return None
        if marker == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 + length
        if marker == _SCAN:
            return frame and _with_scan(frame, content[at + 4])
        if marker in _HUFFMAN and end - at >= 13:
            frame = _frame(content, at + 4, marker)
        if marker in _OTHER_FRAMES or (marker == _APP1 and _turns(bytes(content[at + 4 : end]))):
            return None
        at = end
    return None


def _frame(content: Bytes, at: int, marker: int) -> JpegFrame | None:
    """Read the segment at `at`: precision, height, width, components, then 3 bytes for each."""
    if at + _SIZES.size > len(content):
        return None
    precision, height, width, components = _SIZES.unpack_from(content, at)
    last = at + 7 + 3 * (components - 1)
    if precision != 8 or components not in (1, 3) or not height or last >= len(content):
        return None
    sampling = max(content[at + 7 + 3 * one] & 15 for one in range(components))
    rows = None if marker == _PROGRESSIVE else _BLOCK * sampling
    return JpegFrame(height, width, components, rows, at + 1)


def _with_scan(frame: JpegFrame, components: int) -> JpegFrame:
    """Say what the first scan adds: with fewer components than the image, others follow it."""
    if components == frame.components:
        return frame
    return JpegFrame(frame.height, frame.width, frame.components, None, frame.height_at)


def _turns(segment: bytes) -> bool:
    """Whether an APP1 segment says that the image is not upright as it is stored."""
    if not segment.startswith(b"Exif"):
        return b"tiff:Orientation" in segment
    exif = Image.Exif()
    try:
        exif.load(segment)
        return exif.get(_ORIENTATION, 1) != 1
    except Exception:  # a damaged block: leave the judgement to the full decoder
        return True


def decode_jpeg(
    content: Bytes,
    frame: JpegFrame,
    channels: int,
    *,
    bottom: int | None = None,
    shrink: int = 1,
) -> NDArray[np.uint8]:
    """Return pixels (H, W, channels), one of 1 and 3, never fewer than the frame's components.

    bottom: rows from there on, counted in the full image, may be missing. shrink: 1, 2, 4 or 8;
    sides are rounded up. Raises ValueError for bytes that are no such JPEG.
    """
    height = frame.height
    if bottom is not None and frame.rows_at_once is not None:
        # One more row than wanted: the chroma of the last one is interpolated with the next.
        cut = -(-(bottom + 1) // frame.rows_at_once) * frame.rows_at_once
        if cut < height:
            height = cut
            content = _lowered(content, frame, height)
    least = (-(-height // shrink), -(-frame.width // shrink)) if shrink > 1 else (0, 0)
    # Not strict, as Pillow: what a decoder only warns of was accepted when it was sharded. The
    # rows left out are such a warning too.
    return simplejpeg.decode_jpeg(
        content,
        "GRAY" if channels == 1 else "RGB",
        min_height=least[0],
        min_width=least[1],
        strict=False,
    )


def _lowered(content: Bytes, frame: JpegFrame, height: int) -> bytearray:
    changed = bytearray(content)
    changed[frame.height_at : frame.height_at + 2] = height.to_bytes(2, "big")
    return changed
