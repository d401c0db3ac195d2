"""Stored forms: what is asked for, the same every time, and of the file found only the pixels."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mae.data.decoding.decode import decode, probe
from mae.data.loading.resample import resample_one
from mae.data.reasons import ImageFault
from mae.data.sharding.stored import Stored, stored_form, stored_shape
from tests.data import zoo

ROOT = Path(__file__).parents[2]
PHOTO = zoo.encoded(Image.fromarray(zoo.pattern(60, 90)), "JPEG", quality=95)


def stored(content: bytes, form: str = "encoded", codec: str = "jpeg", **changes: object) -> Stored:
    store = {"form": form, "codec": codec, "short_side": changes.pop("short_side", None)}
    header = probe(content)
    return stored_form(
        content, header.height, header.width, zoo.data_params(store=store, **changes)
    )


def test_found_is_left_alone() -> None:
    data = zoo.data_params(store={"form": "found", "short_side": 10})
    assert stored_form(PHOTO, 60, 90, data) == (PHOTO, 60, 90)


@pytest.mark.parametrize("codec", ["jpeg", "webp", "png"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("short_side", [None, 40])
def test_encoded_anew(codec: str, channels: int, short_side: int | None) -> None:
    result = stored(PHOTO, codec=codec, channels=channels, short_side=short_side)
    assert (result.height, result.width) == ((60, 90) if short_side is None else (40, 60))
    header = probe(result.content)
    assert header.format == codec.upper()
    assert (header.height, header.width) == (result.height, result.width)
    expected = decode(PHOTO, channels, 8)
    if short_side:
        expected = resample_one(expected, (0, 0, 60, 90), 40, 60).transpose(1, 2, 0)
    again = decode(result.content, channels, 8)
    if codec == "png":
        assert np.array_equal(again, expected)
    else:
        assert np.abs(again.astype(int) - expected).mean() < 6  # colours that change fast lose most


@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 8), (4, 8), (1, 16), (3, 16), (13, 16)])
@pytest.mark.parametrize("short_side", [None, 12])
def test_raw_pixels_are_what_would_have_been_decoded(
    channels: int, bit_depth: int, short_side: int | None
) -> None:
    content = zoo.bands(13, np.uint16) if channels == 13 else zoo.good_kinds()["rgb16.png"]
    result = stored(content, "raw", channels=channels, bit_depth=bit_depth, short_side=short_side)
    assert result.content.startswith(b"\x93NUMPY\x01\x00")
    pixels = decode(result.content, channels, bit_depth)
    assert pixels.shape == (result.height, result.width, channels)
    if short_side is None:
        assert np.array_equal(pixels, decode(content, channels, bit_depth))
    else:
        assert (result.height, result.width) == (12, 14)


def test_sixteen_bit_png() -> None:
    content = zoo.good_kinds()["grey16.png"]
    result = stored(content, codec="png", bit_depth=16)
    assert probe(result.content).bit_depth == 16
    assert np.array_equal(decode(result.content, 1, 16), decode(content, 1, 16))


@pytest.mark.parametrize("form", ["raw", "encoded"])
def test_bands_and_range_are_applied_once(form: str) -> None:
    wanted = {"channels": 3, "bands": (4, 2, 0), "depth_range": (1000, 40_000)}
    content = zoo.bands(13, np.uint16)
    result = stored(content, form, codec="png", **wanted)
    keywords = {"bands": (4, 2, 0), "depth_range": (1000, 40_000)}
    expected = decode(content, 3, 8, **keywords)
    assert np.array_equal(decode(result.content, 3, 8, **keywords), expected)


def test_orientation_is_applied_and_forgotten() -> None:
    turned = zoo.good_kinds()["turned.png"]
    result = stored(turned, codec="png", channels=3)
    header = probe(result.content)
    assert (header.height, header.width, header.orientation) == (32, 20, 1)
    assert np.array_equal(decode(result.content, 3, 8), decode(turned, 3, 8))


@pytest.mark.parametrize("codec", ["jpeg", "webp", "png"])
def test_nothing_but_pixels_is_kept(codec: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    content = zoo.encoded(
        Image.fromarray(zoo.pattern(40, 56)),
        "JPEG",
        exif=exif,
        icc_profile=zoo.colour_profile(wide=True),
        comment="by somebody",
        dpi=(300, 300),
    )
    result = stored(content, codec=codec, channels=3)
    with Image.open(io.BytesIO(result.content)) as image:
        assert not dict(image.getexif())
        assert not {"icc_profile", "exif", "comment", "xmp", "dpi"} & image.info.keys()
    assert b"home" not in result.content and b"somebody" not in result.content


_HASHES = """
import hashlib, sys
sys.path.insert(0, {root!r})
from tests.data.test_stored import hashes
print(hashes())
"""


def hashes() -> str:
    content = hashlib.sha256()
    for form, codec in (
        ("raw", "png"),
        ("encoded", "jpeg"),
        ("encoded", "webp"),
        ("encoded", "png"),
    ):
        for short_side in (None, 31):
            content.update(stored(PHOTO, form, codec, channels=3, short_side=short_side).content)
    return content.hexdigest()


def test_equal_input_gives_equal_bytes_in_any_process() -> None:
    script = _HASHES.format(root=str(ROOT))
    there = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == hashes()


def test_what_does_not_fit_is_a_fault() -> None:
    with pytest.raises(ImageFault, match="13 channels"):
        stored(zoo.bands(13), "raw", channels=3)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600))
def test_the_shorter_side_is_met_and_nothing_grows(height: int, width: int, side: int) -> None:
    new_height, new_width = stored_shape(height, width, side)
    if min(height, width) <= side:
        assert (new_height, new_width) == (height, width)
    else:
        assert min(new_height, new_width) == side
        assert (
            abs(max(new_height, new_width) - max(height, width) * side / min(height, width)) <= 0.5
        )
    assert stored_shape(width, height, side) == (new_width, new_height)
    assert stored_shape(height, width, None) == (height, width)
