"""A JPEG decoded in part shows the pixels of the whole, where they belong."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.photos import photo
from mae.data.decoding.jpeg import SHRINKS, decode_jpeg, read_frame
from mae.data.loading.crops import reduction
from mae.data.loading.resample import resample_one

CODINGS: list[dict[str, Any]] = [
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2},
    {"subsampling": 2, "progressive": True},
    {"subsampling": 2, "restart_marker_rows": 1},
    {"subsampling": 2, "restart_marker_blocks": 7, "optimize": True},
]


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def pillow(content: bytes) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    return pixels.reshape(*pixels.shape[:2], -1)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * float(np.log10(255**2 / ((a.astype(float) - b) ** 2).mean()))


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (377, 501), (97, 33), (16, 16)])
def test_rows_above_the_cut_are_those_of_a_full_decode(
    height: int, width: int, channels: int, coding: dict[str, Any]
) -> None:
    content = jpeg(photo(0, height, width)[..., :channels], **coding)
    frame = read_frame(content)
    assert frame is not None
    assert (frame.height, frame.width, frame.components) == (height, width, channels)
    whole = pillow(content)
    assert np.array_equal(decode_jpeg(content, frame, channels), whole)
    for bottom in {1, 7, 15, 16, 17, 32, height // 2, height - 1, height}:
        part = decode_jpeg(memoryview(content), frame, channels, bottom=bottom)
        assert np.array_equal(part[:bottom], whole[:bottom])
        assert len(part) <= height


def test_fewer_rows_are_decoded_where_they_are_coded_in_order() -> None:
    pixels = photo(1, 320, 200)
    plain, progressive = jpeg(pixels), jpeg(pixels, progressive=True)
    for content, rows in ((plain, 112), (progressive, 320)):
        frame = read_frame(content)
        assert frame is not None
        assert len(decode_jpeg(content, frame, 3, bottom=100)) == rows


def test_several_scans_are_not_cut() -> None:
    """Baseline, but a scan for each component: the rows of the second follow all of the first."""
    content = jpeg(photo(2, 64, 64))
    frame = read_frame(content)
    scan = content.index(b"\xff\xda\x00\x0c\x03")
    several = content[: scan + 4] + b"\x01" + content[scan + 5 :]
    found = read_frame(several)
    assert frame is not None
    assert found is not None
    assert (frame.rows_at_once, found.rows_at_once) == (16, None)


@pytest.mark.parametrize("shrink", SHRINKS)
@pytest.mark.parametrize("coding", CODINGS)
def test_reduced_sides_are_rounded_up_and_rows_may_be_cut_too(
    shrink: int, coding: dict[str, Any]
) -> None:
    for height, width in ((375, 500), (377, 501), (320, 200)):
        content = jpeg(photo(0, height, width), **coding)
        frame = read_frame(content)
        assert frame is not None
        reduced = decode_jpeg(content, frame, 3, shrink=shrink)
        assert reduced.shape == (-(-height // shrink), -(-width // shrink), 3)
        cut = decode_jpeg(content, frame, 3, shrink=shrink, bottom=160)
        assert np.array_equal(cut[: 160 // shrink], reduced[: 160 // shrink])


@pytest.mark.parametrize("shrink", SHRINKS)
def test_a_reduction_does_not_shift_or_stretch(shrink: int) -> None:
    """What moved is a wave's derivative; its strength is the distance."""
    rows, columns = np.mgrid[0:640, 0:800]
    period = 20 * shrink
    waves = [128 + 90 * np.sin(2 * np.pi * along / period) for along in (rows, columns)]
    pixels = np.stack([*waves, waves[0]], axis=2).round().astype(np.uint8)
    content = jpeg(pixels, quality=98, subsampling=0)
    frame = read_frame(content)
    assert frame is not None
    crop = (4 * shrink, 6 * shrink, 64 * shrink, 72 * shrink)
    whole = resample_one(decode_jpeg(content, frame, 3), crop, 60, 64).astype(float)
    reduced = decode_jpeg(content, frame, 3, shrink=shrink)
    small = resample_one(reduced, tuple(side // shrink for side in crop), 60, 64)
    for axis in (0, 1):
        slope = np.gradient(whole[axis], axis=axis)
        moved = (small[axis] - whole[axis]) * slope
        # At the crop's edge the two see other neighbours.
        for part in (slice(4, 22), slice(22, 40), slice(40, 56)):
            place = (part, slice(4, -4)) if axis == 0 else (slice(4, -4), part)
            assert abs(moved[place].sum() / (slope[place] ** 2).sum()) < 0.02


@pytest.mark.parametrize("shrink", SHRINKS)
def test_a_reduced_photograph_looks_the_same(shrink: int) -> None:
    content = jpeg(photo(3, 1504, 2000, grain=4.0), subsampling=2)
    frame = read_frame(content)
    assert frame is not None
    height, width = 1504 // shrink * 9 // 10, 2000 // shrink * 9 // 10
    whole = (0, 0, 1504, 2000)
    assert reduction(whole, height, width) == shrink
    expected = resample_one(decode_jpeg(content, frame, 3), whole, height, width)
    reduced = decode_jpeg(content, frame, 3, shrink=shrink)
    found = resample_one(reduced, (0, 0, *reduced.shape[:2]), height, width)
    assert psnr(found, expected) > 40


def test_grey_becomes_colour_by_repetition() -> None:
    content = jpeg(photo(0, 40, 50)[..., :1])
    frame = read_frame(content)
    assert frame is not None
    pixels = decode_jpeg(content, frame, 3)
    assert np.array_equal(pixels, np.repeat(pillow(content), 3, axis=2))


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_what_this_road_does_not_take() -> None:
    pixels = photo(0, 40, 50)
    cmyk = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "JPEG")
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    plain = jpeg(pixels)
    start = plain.index(b"\xff\xc0")
    arithmetic = plain[: start + 1] + b"\xc9" + plain[start + 2 :]
    later = plain[: start + 5] + b"\0\0" + plain[start + 7 :]
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    marked = plain[:2] + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp + plain[2:]
    turned = [jpeg(pixels, exif=exif_of(orientation)) for orientation in range(2, 9)]
    for content in (cmyk.getvalue(), png.getvalue(), arithmetic, later, marked, b"", *turned):
        assert read_frame(content) is None
    for content in (plain, jpeg(pixels, exif=exif_of(1)), plain[:2] + b"\xff\xff" + plain[3:]):
        assert read_frame(content) is not None


def test_the_thumbnail_inside_is_not_taken_for_the_image() -> None:
    small = jpeg(photo(0, 16, 24))
    exif = b"Exif\0\0" + exif_of(1).tobytes()[6:] + small
    plain = jpeg(photo(1, 120, 90))
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    content = plain[:2] + segment + plain[2:]
    frame = read_frame(content)
    assert frame is not None
    assert (frame.height, frame.width) == (120, 90)
    assert np.array_equal(
        decode_jpeg(content, frame, 3, bottom=40)[:40], decode_jpeg(plain, frame, 3)[:40]
    )


_PLAIN = jpeg(photo(0, 48, 40))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, len(_PLAIN) - 1), st.integers(0, 255)), max_size=8),
    st.integers(0, len(_PLAIN)),
    st.sampled_from([1, 2, 4, 8]),
)
def test_damage_raises_nothing_else(
    changes: list[tuple[int, int]], length: int, shrink: int
) -> None:
    content = bytearray(_PLAIN)
    for at, value in changes:
        content[at] = value
    damaged = bytes(content[:length])
    frame = read_frame(damaged)
    if frame is None or frame.height * frame.width > 1_000_000:
        return
    try:
        pixels = decode_jpeg(damaged, frame, 3, bottom=20, shrink=shrink)
    except ValueError:
        return
    assert pixels.dtype == np.uint8
