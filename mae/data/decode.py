"""Image bytes -> header, and -> pixels (H, W, C) in the channels and bit depth asked for.

Rules, the same at sharding and at training:
- EXIF orientation is applied; of an animation the first frame is taken.
- Palettes become colours. CMYK, YCbCr and Lab become RGB.
- Colour -> grey: ITU-R 601 luma. Grey -> colour: the grey repeated.
- Alpha: 2 (grey + alpha) or 4 (RGBA) channels keep it, an opaque one is added where there is
  none; 1 or 3 channels are composited on white, as a browser's page shows them.
- 16 bits to 8: rounded v x 255 / 65535; 8 to 16: v x 257.
- A NumPy file (.npy) of uint8 or uint16 (H, W) or (H, W, C) is an image too: the way in for
  more than four bands.
"""

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mae.data import reasons

Pixels = NDArray[np.unsignedinteger[Any]]  # uint8 or uint16

# Never the formats that run another program or fetch something (EPS, WMF). Asking Pillow for a
# format that it was built without is an error.
_WANTED = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
Image.init()
_FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)

# First bytes of the formats above: a file that begins so but cannot be opened is an image cut
# short; any other is no image.
_BEGINNINGS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n",
    b"GIF8",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"RIFF",
    b"\0\0\0\x0cjP",
    b"\x93NUMPY",
)
_NPY = b"\x93NUMPY"

# Pillow's own limit is a process-wide constant below what data.max_pixels may allow; here
# max_pixels is checked on the header, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None

_EXIF_ORIENTATION = 0x0112
_TIFF_BITS_PER_SAMPLE = 258


class ImageFault(Exception):
    """The bytes cannot be used. `reason` is a code of mae.data.reasons, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class ImageHeader:
    """What the header says, before decoding. Height and width are those of the upright image."""

    height: int
    width: int
    mode: str
    channels: int
    bit_depth: int
    format: str

    @property
    def pixels(self) -> int:
        return self.height * self.width


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
    if data.startswith(_NPY):
        return _probe_npy(data)
    with _open(data) as image:
        return _header(data, image)


def decode(data: bytes, channels: int, bit_depth: int) -> Pixels:
    """Return pixels (H, W, channels): uint8 for bit depth 8, uint16 for 16.

    Raises ImageFault. The caller has checked the header's pixel count.
    """
    if data.startswith(_NPY):
        pixels, has_alpha = _load_npy(data), False
    else:
        pixels, has_alpha = _load(data)
    pixels = _to_bit_depth(_to_channels(pixels, has_alpha, channels), bit_depth)
    return np.ascontiguousarray(pixels)


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
    if channels > 1 and _stored_bits(data, image) == 16:
        bit_depth = 16
    width, height = image.size
    if _orientation(image) >= 5:
        height, width = width, height
    return ImageHeader(height, width, image.mode, channels, bit_depth, str(image.format))


def _stored_bits(data: bytes, image: Image.Image) -> int:
    """Return the bits per sample in the file: Pillow opens 16-bit colour as 8-bit."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        bits = image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (8,))  # type: ignore[attr-defined]
        return int(max(bits))
    return 8


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 (upright) to 8.

    Pillow turns TIFF by itself. For PNG without EXIF in front of the pixels, asking Pillow
    would decode the image, which a header check must not.
    """
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _load(data: bytes) -> tuple[Pixels, bool]:
    """Decode to the image's own channels and depth: upright (H, W, c), and whether c has alpha."""
    with _open(data) as image:
        header = _header(data, image)
        try:
            image.load()
            flat = image if header.bit_depth == 16 else _plain_mode(image)
        except Exception as error:
            raise _fault(f"{image.format} cannot be decoded", error) from None
        if header.bit_depth == 16:
            pixels = _sixteen_bit(data, image, header)
            has_alpha = pixels.shape[2] in (2, 4)
        else:
            pixels = np.asarray(flat)
            has_alpha = flat.mode in ("LA", "RGBA")
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        return _turn(pixels, _orientation(image)), has_alpha


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


def _sixteen_bit(data: bytes, image: Image.Image, header: ImageHeader) -> NDArray[np.uint16]:
    if header.channels == 1:
        pixels = np.asarray(image)
        if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
            raise ImageFault(
                reasons.UNSUPPORTED, "32-bit pixels outside 0..65535: save as 16-bit integers"
            )
        return pixels.astype(np.uint16)[..., None]
    if image.format != "PNG":
        raise ImageFault(
            reasons.UNSUPPORTED,
            f"16-bit colour in {image.format}: save as PNG or as a NumPy file (.npy)",
        )
    from torchvision.io import ImageReadMode, decode_image

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        planes = decode_image(encoded, mode=ImageReadMode.UNCHANGED)
    except RuntimeError as error:
        raise ImageFault(reasons.DAMAGED, f"16-bit PNG cannot be decoded ({error})") from None
    return planes.numpy().transpose(1, 2, 0)


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Undo EXIF's orientation: 2-4 mirror or half turn, 5-8 swap height and width as well."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


# --- NumPy ------------------------------------------------------------------------------------


def _probe_npy(data: bytes) -> ImageHeader:
    shape, dtype = _npy_header(data)
    channels = shape[2] if len(shape) == 3 else 1
    return ImageHeader(shape[0], shape[1], f"npy:{channels}", channels, dtype.itemsize * 8, "NPY")


def _npy_header(data: bytes) -> tuple[tuple[int, ...], np.dtype]:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read(stream)
    except (ValueError, KeyError, struct.error, SyntaxError) as error:
        raise ImageFault(reasons.DAMAGED, f"the NumPy header cannot be read ({error})") from None
    if dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)) or len(shape) not in (2, 3):
        raise ImageFault(
            reasons.UNSUPPORTED,
            f"a NumPy array of {dtype} and shape {shape}: save uint8 or uint16 (H, W) or (H, W, C)",
        )
    return shape, dtype


def _load_npy(data: bytes) -> Pixels:
    _npy_header(data)
    try:
        pixels = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise ImageFault(reasons.TRUNCATED, f"the NumPy file ends too early ({error})") from None
    return pixels if pixels.ndim == 3 else pixels[..., None]


# --- channels and depth -----------------------------------------------------------------------


def _to_channels(pixels: Pixels, has_alpha: bool, channels: int) -> Pixels:
    """(H, W, c) -> (H, W, channels) by the rules at the top of this file."""
    found = pixels.shape[2]
    if found == channels:
        return pixels
    if channels > 4 or (not has_alpha and found not in (1, 3)):
        raise ImageFault(
            reasons.UNSUPPORTED, f"has {found} channels where data.channels asks for {channels}"
        )
    colour, alpha = (pixels[..., :-1], pixels[..., -1:]) if has_alpha else (pixels, None)
    full = np.iinfo(pixels.dtype).max
    wanted_colour = 1 if channels <= 2 else 3
    if channels in (1, 3):
        colour = colour if alpha is None else _on_white(colour, alpha, full)
        return _to_colour(colour, wanted_colour)
    if alpha is None:
        alpha = np.full_like(pixels[..., :1], full)
    return np.concatenate([_to_colour(colour, wanted_colour), alpha], axis=2)


def _on_white(colour: Pixels, alpha: Pixels, full: int) -> Pixels:
    opacity = alpha.astype(np.uint64)
    mixed = colour * opacity + full * (full - opacity)
    return ((mixed + full // 2) // full).astype(colour.dtype)


def _to_colour(colour: Pixels, wanted: int) -> Pixels:
    found = colour.shape[2]
    if found == wanted:
        return colour
    if found == 1:
        return np.repeat(colour, wanted, axis=2)
    wide = colour.astype(np.uint64)
    luma = 19595 * wide[..., 0] + 38470 * wide[..., 1] + 7471 * wide[..., 2] + 0x8000
    return (luma >> 16).astype(colour.dtype)[..., None]


def _to_bit_depth(pixels: Pixels, bit_depth: int) -> Pixels:
    if bit_depth == 8 and pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if bit_depth == 16 and pixels.dtype == np.uint8:
        return pixels.astype(np.uint16) * np.uint16(257)
    return pixels
