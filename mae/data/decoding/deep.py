"""More than 8 bits that Pillow refuses or narrows: PNG in 16-bit colour, JPEG of 12 and 16 bits."""

import numpy as np
from numpy.typing import NDArray

from mae.data import reasons
from mae.data.decoding.image import Found, ImageHeader
from mae.data.reasons import ImageFault

_PNG_COLOUR_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
_NO_FRAME = {0xC4, 0xC8, 0xCC}  # tables and extensions among JPEG's C0..CF, which else are frames
_ALONE = {0x01, 0xFF, *range(0xD0, 0xD9)}  # markers without a length


def png_channels(data: bytes) -> int:
    """Return the channels of a 16-bit PNG by its header; a transparent colour adds alpha."""
    return _PNG_COLOUR_CHANNELS.get(data[25], 3)


def load_png(data: bytes) -> Found:
    pixels = _decode("png", data)
    return Found(pixels, pixels.shape[2] in (2, 4))


def probe_jpeg(data: bytes) -> ImageHeader | None:
    """Return the header of a JPEG whose samples have more than 8 bits, else None."""
    frame = _frame(data)
    if frame is None or len(frame) < 6 or frame[0] <= 8:
        return None
    bits, height, width, channels = (
        frame[0],
        int.from_bytes(frame[1:3], "big"),
        int.from_bytes(frame[3:5], "big"),
        frame[5],
    )
    return ImageHeader(height, width, f"jpeg:{channels}", channels, bits, "JPEG")


def load_jpeg(data: bytes) -> Found:
    return Found(_decode("jpeg8", data))


def _frame(data: bytes) -> bytes | None:
    """Return the content of a JPEG's frame header: bits, height, width, channels, ..."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _ALONE:
            place += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            return data[place + 4 : place + 2 + length]
        place += 2 + length
    return None


def _decode(codec: str, data: bytes) -> NDArray[np.uint16]:
    import imagecodecs

    try:
        pixels = getattr(imagecodecs, f"{codec}_decode")(data)
    except Exception as error:  # every codec has errors of its own
        reason = reasons.TRUNCATED if "too small" in str(error) else reasons.DAMAGED
        name = codec.rstrip("8").upper()
        raise ImageFault(
            reason, f"{name} of more than 8 bits cannot be decoded ({error})"
        ) from None
    return pixels if pixels.ndim == 3 else pixels[..., None]
