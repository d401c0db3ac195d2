"""Images of every awkward kind, and datasets made of plain ones."""

import base64
import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms

from mae.data import reasons
from mae.params import DataParams

MakeParams = Callable[..., DataParams]


def pattern(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Return smooth, asymmetric pixels (height, width, channels), another for every seed."""
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [
        110 + 90 * np.sin(0.13 * rows * (plane + 1) + 0.07 * columns + seed) + 0.4 * columns
        for plane in range(channels)
    ]
    return np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8)


def random_pixels(*shape: int, dtype: type = np.uint16) -> NDArray:
    """Return pixels of every value, the same for the same shape."""
    full = np.iinfo(dtype).max
    return np.random.default_rng(sum(shape)).integers(0, full + 1, shape).astype(dtype)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(pixels: NDArray) -> bytes:
    return encoded(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), "PNG")


def raw_png(height: int, width: int, depth: int, color: int, rows: bytes) -> bytes:
    """Assemble a PNG of any depth by hand: `color` 0 grey, 2 RGB; `rows` with filter bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_16(pixels: NDArray[np.uint16]) -> bytes:
    """Return a 16-bit PNG of (H, W, 1) or (H, W, 3) pixels."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    color = 0 if pixels.shape[2] == 1 else 2
    return raw_png(*pixels.shape[:2], 16, color, zlib.compress(rows))


def bomb(side: int = 30_000) -> bytes:
    """Return a small PNG of side x side black pixels, one bit each."""
    squeeze = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    packed = b"".join(squeeze.compress(row) for _ in range(side)) + squeeze.flush()
    return raw_png(side, side, 1, 0, packed)


def exif_rotated(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(pixels), "PNG", exif=exif)


def animated_gif(frames: list[NDArray[np.uint8]]) -> bytes:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    return encoded(first, "GIF", save_all=True, append_images=rest)


def palette_with_alpha(height: int = 20, width: int = 24) -> bytes:
    image = Image.fromarray(pattern(height, width)).quantize(16)
    return encoded(image, "PNG", transparency=3)


def tiff(pixels: NDArray, **options: Any) -> bytes:
    """Return a TIFF as tifffile writes it: (H, W), (H, W, C), or planes (C, H, W)."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def bands(count: int, dtype: type = np.uint8, planes: bool = False) -> bytes:
    """Return a TIFF of `count` bands, 20 x 24, stored by pixel or by plane."""
    pixels = pattern(20, 24, count).astype(dtype)
    if dtype is np.uint16:
        pixels *= 257
    return tiff(
        pixels.transpose(2, 0, 1) if planes else pixels,
        photometric="minisblack",
        planarconfig="separate" if planes else "contig",
    )


def huge_header(height: int = 200_000, width: int = 190_000) -> bytes:
    """Return a TIFF that says it is huge and holds one strip of zeros."""
    small = bytearray(tiff(np.zeros((8, 9), np.uint8)))
    with tifffile.TiffFile(io.BytesIO(bytes(small))) as file:
        tags = file.pages[0].tags
        for name, value in (("ImageLength", height), ("ImageWidth", width)):
            struct.pack_into("<HI", small, tags[name].offset + 2, 4, 1)
            struct.pack_into("<I", small, tags[name].offset + 8, value)
    return bytes(small)


def colour_profile(wide: bool) -> bytes:
    """Return the ICC profile of sRGB, or one with the primaries of Adobe RGB."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.60974, 0.31111, 0.01947),
        b"gXYZ": (0.20528, 0.62567, 0.06087),
        b"bXYZ": (0.14919, 0.06322, 0.74457),
    }
    for number in range(struct.unpack_from(">I", profile, 128)[0]):
        name, start = struct.unpack_from(">4sI", profile, 132 + 12 * number)
        if wide and name in primaries:
            fixed = [round(value * 65536) for value in primaries[name]]
            struct.pack_into(">3i", profile, start + 8, *fixed)
    return bytes(profile)


# Made by libjpeg-turbo's `cjpeg -arithmetic -quality 40` of pattern(24, 24): nothing that can be
# installed from PyPI writes arithmetic coding.
ARITHMETIC_JPEG = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV02B@n5)Ta&5)cv>6%-gAG9exu93DL^E+jHZKuk+VKt@GST61DhRc%&9Mr4R("
    "ZFhTtf`Lw8jhBplmUDiAeE-`3Lje^R7akfOJ0T%Ed{ahKe0+R-e0+R-e0+R-e0+R-e0+R-e0+R-e0+R-e0+R-e0+R-"
    "e0+R-e0+R-e0+R-e0=}O01*fP7yuXp0U`hb5di}c0sqVZ3IGrg1pyEd1^?Or3<CiG0ucid06zfHy@YN*l&~f6EOWw;"
    "P|P^^HbzBdbU_=GRv5|Lt{)@at_)wYS|M@;$h$v0iSx?Xh-QYW1Y%o8BvV!V_P@aqCxJs?>tu}RV=5ocAyfPZ5+#8D"
    "*#"
)


@cache
def good_kinds() -> dict[str, bytes]:
    """Return name -> an image that can be used in one or three channels of 8 bits."""
    photo = Image.fromarray(pattern(40, 56))

    def jpeg(seed: int, **options: object) -> bytes:
        return encoded(Image.fromarray(pattern(40, 56, seed=seed)), "JPEG", quality=90, **options)

    return {
        "plain.jpg": encoded(photo, "JPEG", quality=90),
        "wrong suffix.png": jpeg(2),
        "wrong suffix.jpg": png(pattern(20, 24, seed=3)),
        "grüße aus köln.jpg": jpeg(4),
        "upper.JPG": encoded(photo, "JPEG", quality=50),
        "progressive.jpg": jpeg(5, progressive=True),
        "arithmetic.jpg": ARITHMETIC_JPEG,
        "twelve.jpg": imagecodecs.jpeg8_encode(
            pattern(20, 24, 1)[..., 0].astype(np.uint16) * 16, 95, bitspersample=12
        ),
        "profile.jpg": jpeg(6, icc_profile=colour_profile(wide=False)),
        "wide gamut.jpg": jpeg(7, icc_profile=colour_profile(wide=True)),
        "cmyk.jpg": encoded(photo.convert("CMYK"), "JPEG"),
        "web.webp": encoded(photo, "WEBP"),
        "av1.avif": encoded(photo, "AVIF"),
        "grey16.png": png_16(pattern(20, 24, 1).astype(np.uint16) * 257),
        "rgb16.png": png_16(pattern(20, 24).astype(np.uint16) * 257),
        "palette.png": palette_with_alpha(),
        "rgba.png": png(pattern(20, 24, 4)),
        "la.png": encoded(Image.fromarray(pattern(20, 24, 2), "LA"), "PNG"),
        "moving.gif": animated_gif([pattern(20, 24, seed=n) for n in range(3)]),
        "turned.png": exif_rotated(pattern(20, 32), 6),
        "bilevel.png": encoded(photo.convert("1"), "PNG"),
        "bands.npy": npy(pattern(20, 24, 1)),
        "twelve.tif": tiff(pattern(20, 24, 1)[..., 0].astype(np.uint16) * 16, bitspersample=12),
        "rgb16.tif": tiff(pattern(20, 24).astype(np.uint16) * 257, photometric="rgb"),
        "planes.tif": tiff(
            pattern(20, 24, seed=8).transpose(2, 0, 1), photometric="rgb", planarconfig="separate"
        ),
        "spare.tif": tiff(pattern(20, 24, 4), photometric="rgb", extrasamples=["unspecified"]),
        "lzw.tif": tiff(pattern(20, 24, seed=9), photometric="rgb", compression="lzw"),
        "big.tif": tiff(pattern(20, 24, seed=10), photometric="rgb", bigtiff=True),
        "pages.tif": tiff(pattern(20, 24, 3, seed=11).transpose(2, 0, 1), photometric="minisblack"),
    }


@cache
def bad_kinds() -> dict[str, tuple[bytes, str]]:
    """Return name -> bytes, and the reason they are quarantined for."""
    jpeg = encoded(Image.fromarray(pattern(40, 56)), "JPEG", quality=90)
    with_nan = np.full((20, 20), np.nan, np.float32)
    wide = tiff(pattern(20, 24).astype(np.uint16), photometric="rgb", compression="lzw")
    return {
        "empty.jpg": (b"", reasons.EMPTY),
        "cut.jpg": (jpeg[: len(jpeg) // 2], reasons.TRUNCATED),
        "stub.jpg": (jpeg[:10], reasons.TRUNCATED),
        "cut.png": (png(pattern(40, 56))[:400], reasons.TRUNCATED),
        "cut.tif": (wide[:-300], reasons.TRUNCATED),
        "words.jpg": (b"this was a letter, renamed", reasons.NOT_AN_IMAGE),
        "dot.png": (png(pattern(1, 1)), reasons.TOO_SMALL),
        "flat.png": (png(pattern(3, 300)), reasons.TOO_SMALL),
        "bomb.png": (bomb(), reasons.TOO_LARGE),
        "huge.tif": (huge_header(), reasons.TOO_LARGE),
        "huge.npy": (npy_header((60_000, 60_000, 3)), reasons.TOO_LARGE),
        "phone.heic": (b"\0\0\0\x18ftypheic", reasons.UNSUPPORTED),
        "nan.tif": (tiff(with_nan), reasons.UNSUPPORTED),
        "double.tif": (tiff(with_nan.astype(np.float64)), reasons.UNSUPPORTED),
        "signed.tif": (
            tiff(pattern(20, 24).astype(np.int16), photometric="rgb"),
            reasons.UNSUPPORTED,
        ),
        "five.tif": (bands(5), reasons.UNSUPPORTED),
        "thirteen.tif": (bands(13, np.uint16, planes=True), reasons.UNSUPPORTED),
        "thirteen.npy": (npy(np.zeros((20, 20, 13), np.uint8)), reasons.UNSUPPORTED),
        "float.npy": (npy(np.zeros((20, 20), np.float32)), reasons.UNSUPPORTED),
        "pickled.npy": (npy(np.array([[{}]])), reasons.UNSUPPORTED),
        "short.npy": (npy(np.zeros((20, 20), np.uint8))[:-7], reasons.TRUNCATED),
    }


def build(folder: Path) -> dict[str, str | None]:
    """Fill `folder` with the zoo. Return name -> reason it must be quarantined for, or None."""
    folder.mkdir(parents=True, exist_ok=True)
    expected: dict[str, str | None] = {}
    good = good_kinds()
    for name, content in good.items():
        (folder / name).write_bytes(content)
        expected[name] = None
    for name, (content, reason) in bad_kinds().items():
        (folder / name).write_bytes(content)
        expected[name] = reason
    (folder / "twice.jpg").write_bytes(good["plain.jpg"])
    (folder / "lost.jpg").symlink_to("nowhere.jpg")
    (folder / "folder.jpg").mkdir()
    return expected | {
        "twice.jpg": reasons.DUPLICATE,
        "lost.jpg": reasons.DANGLING_LINK,
        "folder.jpg": reasons.UNREADABLE,
    }


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Return a NumPy file of `shape` without the pixels."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def npy(pixels: NDArray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels, allow_pickle=True)
    return buffer.getvalue()


def write_images(
    folder: Path, count: int, *, height: int = 32, width: int = 24, channels: int = 1
) -> None:
    """Write `count` different PNGs, of varying shapes when height is negative."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        h, w = (height, width) if height > 0 else (30 + number % 17, 28 + number * 7 % 23)
        pixels = pattern(h, w, channels, seed=zlib.crc32(f"{folder.name}{number}".encode()) % 999)
        pixels[0, 0] = number % 256
        (folder / f"{number:04d}.png").write_bytes(png(pixels))


def data_params(**changes: object) -> DataParams:
    """Return params with changes: images=Path is a folder source, scenes=Path a COCO one.

    A mapping replaces only the keys that it names.
    """
    values: dict[str, Any] = {
        "images": {"source": "digits"},
        "scenes": {"source": "none"},
        "splits": {"val": 0.1, "test": 0.2, "stratify": False},
        "duplicates": {"exact": "drop", "near": "keep", "near_bits": 4},
        "exclude_labels": [],
        "channels": 1,
        "bands": None,
        "bit_depth": 8,
        "depth_range": [0, 65535],
        "min_side": 8,
        "max_pixels": 100_000_000,
        "store": {"form": "found", "codec": "jpeg", "quality": 90, "short_side": None},
        "shard_mb": 512,
    }
    for name, value in changes.items():
        if isinstance(value, Path):
            source = {"images": "folder", "scenes": "coco"}[name]
            values[name] = {"source": source, "path": str(value)}
        elif isinstance(value, dict):
            values[name] = values[name] | value
        else:
            values[name] = value
    return DataParams.model_validate(values)
