"""Image bytes -> header, and -> pixels (H, W, C) in the channels and bit depth asked for.

Rules, the same at sharding and at training:
- EXIF orientation is applied; of an animation, or a TIFF of several pages, the first is taken.
- Palettes become colours. CMYK, YCbCr and Lab become RGB. Colour profiles (ICC) are not applied.
- `bands` names the channels to take from files that have more than `channels`.
- Colour -> grey: ITU-R 601 luma. Grey -> colour: the grey repeated.
- Alpha: 2 (grey + alpha) or 4 (RGBA) channels keep it, an opaque one is added where there is
  none; 1 or 3 channels are composited on white, as a browser's page shows them. Channels after
  RGB to which a TIFF gives no meaning are left out, unless as many are asked for.
- 16 bits to 8: `depth_range` becomes 0..255, rounded; the whole range is v x 255 / 65535.
  8 to 16: v x 257. Files of 9 to 15 bits keep their values, 0..4095 of a 12-bit camera, so they
  need a depth_range of [0, 4095]. Floating point is refused.
- A NumPy file (.npy) of uint8 or uint16 (H, W) or (H, W, C) is an image too.
"""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from mae.data import reasons
from mae.data.decoding import channels as channel_rules
from mae.data.decoding import deep, npy, tiff
from mae.data.decoding.channels import FULL_RANGE
from mae.data.decoding.image import Found, ImageHeader, Pixels, turn
from mae.data.reasons import ImageFault

__all__ = ["ImageFault", "ImageHeader", "Pixels", "decode", "load", "probe"]

# Never the formats that run another program or fetch something (EPS, WMF). Asking Pillow for a
# format that it was built without is an error.
_WANTED = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
Image.init()
_FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)

# First bytes of the formats above: a file that begins so but cannot be opened is an image cut
# short; any other is no image.
_JPEG = b"\xff\xd8\xff"
_BEGINNINGS = (
    _JPEG,
    b"\x89PNG\r\n",
    b"GIF8",
    b"BM",
    *tiff.BEGINNINGS,
    b"RIFF",
    b"\0\0\0\x0cjP",
    npy.BEGINNING,
)

# Pillow's own limit is a process-wide constant below what data.max_pixels may allow; here
# max_pixels is checked on the header, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None

# What is wrong with a file is said once, in the manifest, and not for each of its tags.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_EXIF_ORIENTATION = 0x0112

# Modes of Pillow -> channels after palettes and colour spaces are resolved, and bit depth.
_MODES = {
    "1": (1, 8),
    "L": (1, 8),
    "LA": (2, 8),
    "La": (2, 8),
    "P": (3, 8),
    "PA": (4, 8),
    "RGB": (3, 8),
    "RGBX": (3, 8),
    "RGBA": (4, 8),
    "RGBa": (4, 8),
    "CMYK": (3, 8),
    "YCbCr": (3, 8),
    "LAB": (3, 8),
    "HSV": (3, 8),
    "I;16": (1, 16),
    "I;16B": (1, 16),
    "I;16L": (1, 16),
    "I;16N": (1, 16),
    "I": (1, 16),
}


def probe(data: bytes) -> ImageHeader:
    """Read the header alone. Raises ImageFault when the bytes are no image that can be used."""
    if not data:
        raise ImageFault(reasons.EMPTY, "the file has no bytes")
    if data.startswith(npy.BEGINNING):
        return npy.probe(data)
    if data.startswith(tiff.BEGINNINGS) and (header := tiff.probe(data)) is not None:
        return header
    try:
        with _open(data) as image:
            return _header(data, image)
    except ImageFault:
        if data.startswith(_JPEG) and (header := deep.probe_jpeg(data)) is not None:
            return header
        raise


def decode(
    data: bytes,
    channels: int,
    bit_depth: int,
    *,
    bands: tuple[int, ...] | None = None,
    depth_range: tuple[int, int] = FULL_RANGE,
) -> Pixels:
    """Return pixels (H, W, channels): uint8 for bit depth 8, uint16 for 16; maybe read-only.

    Raises ImageFault. The caller has checked the header's pixel count. What was decoded, stored
    without loss and is decoded again with the same arguments stays the same.
    """
    found = load(data)
    return np.ascontiguousarray(channel_rules.fit(found, channels, bit_depth, bands, depth_range))


def load(data: bytes) -> Found:
    """Decode to the image's own channels and depth, upright. Raises ImageFault."""
    if data.startswith(npy.BEGINNING):
        return npy.load(data)
    if data.startswith(tiff.BEGINNINGS) and (found := tiff.load(data)) is not None:
        return found
    try:
        image = _open(data)
    except ImageFault:
        if data.startswith(_JPEG) and deep.probe_jpeg(data) is not None:
            return deep.load_jpeg(data)
        raise
    with image:
        return _load(data, image)


# --- Pillow -----------------------------------------------------------------------------------


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        if data.startswith(_BEGINNINGS):
            raise ImageFault(
                reasons.TRUNCATED, f"begins as an image, but {len(data)} bytes hold no whole header"
            ) from None
        raise ImageFault(
            reasons.NOT_AN_IMAGE, f"begins with {data[:12]!r}, which is no known image format"
        ) from None
    except Exception as error:  # a damaged header makes Pillow raise nearly anything
        raise _fault("the header cannot be read", error) from None


def _fault(what: str, error: Exception) -> ImageFault:
    reason = reasons.TRUNCATED if "truncated" in str(error).lower() else reasons.DAMAGED
    return ImageFault(reason, f"{what} ({error})")


def _header(data: bytes, image: Image.Image) -> ImageHeader:
    if image.mode not in _MODES:
        raise ImageFault(
            reasons.UNSUPPORTED,
            f"pixels of mode {image.mode} (floating point?): save as 8- or 16-bit integers",
        )
    channels, bit_depth = _MODES[image.mode]
    if image.mode == "P" and "transparency" in image.info:
        channels = 4
    if channels > 1 and image.format == "PNG" and data[24] == 16:
        channels, bit_depth = deep.png_channels(data), 16
    width, height = image.size
    orientation = _orientation(image)
    if orientation >= 5 and not _turned_by_pillow(image):
        height, width = width, height
    return ImageHeader(
        height, width, image.mode, channels, bit_depth, str(image.format), orientation
    )


def _turned_by_pillow(image: Image.Image) -> bool:
    return image.format == "TIFF"


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 (upright) to 8.

    For PNG without EXIF in front of the pixels, asking Pillow would decode the image, which a
    header check must not.
    """
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _load(data: bytes, image: Image.Image) -> Found:
    header = _header(data, image)
    if header.bit_depth == 16 and header.channels > 1:
        found = deep.load_png(data)
        return found._replace(pixels=turn(found.pixels, header.orientation))
    try:
        image.load()
        flat = image if header.bit_depth == 16 else _plain_mode(image)
    except Exception as error:
        raise _fault(f"{image.format} cannot be decoded", error) from None
    pixels = _sixteen_bit(image) if header.bit_depth == 16 else np.asarray(flat)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    orientation = 1 if _turned_by_pillow(image) else header.orientation
    return Found(turn(pixels, orientation), flat.mode in ("LA", "RGBA"))


def _plain_mode(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in image.info:
        return image
    if "transparency" in image.info or image.mode in ("PA", "RGBa"):
        return image.convert("RGBA")
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode == "La":
        return image.convert("LA")
    return image.convert("RGB")


def _sixteen_bit(image: Image.Image) -> Pixels:
    pixels = np.asarray(image)
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise ImageFault(
            reasons.UNSUPPORTED, "32-bit pixels outside 0..65535: save as 16-bit integers"
        )
    return pixels.astype(np.uint16)
