"""Images of every awkward kind, and datasets made of plain ones."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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


def build(folder: Path) -> dict[str, str | None]:
    """Fill `folder` with the zoo. Return name -> reason it must be quarantined for, or None."""
    folder.mkdir(parents=True, exist_ok=True)
    photo = Image.fromarray(pattern(40, 56))
    jpeg = encoded(photo, "JPEG", quality=90)
    good = {
        "plain.jpg": jpeg,
        "wrong suffix.png": jpeg,
        "grüße aus köln.jpg": jpeg,
        "upper.JPG": encoded(photo, "JPEG", quality=50),
        "cmyk.jpg": encoded(photo.convert("CMYK"), "JPEG"),
        "grey16.png": png_16(pattern(20, 24, 1).astype(np.uint16) * 257),
        "rgb16.png": png_16(pattern(20, 24).astype(np.uint16) * 257),
        "palette.png": palette_with_alpha(),
        "moving.gif": animated_gif([pattern(20, 24, seed=n) for n in range(3)]),
        "turned.png": exif_rotated(pattern(20, 32), 6),
        "bilevel.png": encoded(photo.convert("1"), "PNG"),
        "bands.npy": npy(pattern(20, 24, 1)),
    }
    bad = {
        "empty.jpg": (b"", reasons.EMPTY),
        "cut.jpg": (jpeg[: len(jpeg) // 2], reasons.TRUNCATED),
        "stub.jpg": (jpeg[:10], reasons.TRUNCATED),
        "cut.png": (png(pattern(40, 56))[:400], reasons.TRUNCATED),
        "words.jpg": (b"this was a letter, renamed", reasons.NOT_AN_IMAGE),
        "dot.png": (png(pattern(1, 1)), reasons.TOO_SMALL),
        "flat.png": (png(pattern(3, 300)), reasons.TOO_SMALL),
        "bomb.png": (bomb(), reasons.TOO_LARGE),
        "phone.heic": (b"\0\0\0\x18ftypheic", reasons.UNSUPPORTED),
        "float.tif": (encoded(Image.new("F", (20, 20)), "TIFF"), reasons.UNSUPPORTED),
        "thirteen.npy": (npy(np.zeros((20, 20, 13), np.uint8)), reasons.UNSUPPORTED),
        "float.npy": (npy(np.zeros((20, 20), np.float32)), reasons.UNSUPPORTED),
        "pickled.npy": (npy(np.array([[{}]])), reasons.UNSUPPORTED),
        "short.npy": (npy(np.zeros((20, 20), np.uint8))[:-7], reasons.TRUNCATED),
    }
    expected: dict[str, str | None] = {}
    for name, content in good.items():
        (folder / name).write_bytes(content)
        expected[name] = None
    for name, (content, reason) in bad.items():
        (folder / name).write_bytes(content)
        expected[name] = reason
    (folder / "lost.jpg").symlink_to("nowhere.jpg")
    (folder / "folder.jpg").mkdir()
    expected |= {"lost.jpg": reasons.DANGLING_LINK, "folder.jpg": reasons.UNREADABLE}
    return expected


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
    """Return params with changes: images=Path is a folder source, scenes=Path a COCO one."""
    values: dict[str, object] = {
        "images": {"source": "digits"},
        "scenes": {"source": "none"},
        "splits": {"val": 0.1, "test": 0.2},
        "channels": 1,
        "bit_depth": 8,
        "min_side": 8,
        "max_pixels": 100_000_000,
        "shard_mb": 512,
    }
    for name, path in changes.items():
        is_path = isinstance(path, Path)
        source = {"images": "folder", "scenes": "coco"}.get(name, "")
        values[name] = {"source": source, "path": str(path)} if is_path else path
    return DataParams.model_validate(values)
