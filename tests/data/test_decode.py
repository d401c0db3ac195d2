"""Every kind of image comes out upright, in the channels and bit depth asked for."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mae.data import reasons
from mae.data.decode import ImageFault, decode, probe
from tests.data import zoo


def fault_of(data: bytes, channels: int = 3, bit_depth: int = 8) -> str:
    with pytest.raises(ImageFault) as caught:
        probe(data)
        decode(data, channels, bit_depth)
    return caught.value.reason


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_gives_the_channels_asked_for(mode: str, channels: int) -> None:
    image = Image.fromarray(zoo.pattern(20, 24)).convert(mode)
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    pixels = decode(zoo.encoded(image, kind), channels, 8)
    assert pixels.shape == (20, 24, channels)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_as_pillow_does(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = zoo.encoded(Image.fromarray(zoo.pattern(16, 24)), kind, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = decode(data, 3, 8)
    assert np.array_equal(pixels, upright)
    header = probe(data)
    assert (header.height, header.width) == pixels.shape[:2]


def test_colour_to_grey_is_pillows_luma() -> None:
    pixels = zoo.pattern(30, 40)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.array_equal(decode(zoo.png(pixels), 1, 8)[..., 0], expected)


def test_alpha_is_composited_on_white() -> None:
    pixels = np.zeros((10, 10, 4), np.uint8)
    pixels[..., 3] = [[0], [128], [255]] * 3 + [[255]]
    shown = decode(zoo.png(pixels), 3, 8)
    assert (shown[0] == 255).all()
    assert (shown[1] == 127).all()
    assert (shown[2] == 0).all()


def test_palette_transparency_is_composited_too() -> None:
    data = zoo.palette_with_alpha()
    clear = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))[..., 3] == 0
    assert clear.any()
    assert (decode(data, 3, 8)[clear] == 255).all()
    assert (decode(data, 4, 8)[..., 3] == np.where(clear, 0, 255)).all()


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [np.full((12, 12, 3), value, np.uint8) for value in (200, 100, 0)]
    assert (decode(zoo.animated_gif(frames), 1, 8) == 200).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_kept(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (9, 11, channels)).astype(np.uint16)
    data = zoo.png_16(pixels)
    assert np.array_equal(decode(data, channels, 16), pixels)
    assert probe(data).bit_depth == 16
    assert probe(data).channels == channels


def test_bit_depths_convert_with_rounding_and_back() -> None:
    wide = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    narrow = decode(zoo.png_16(wide), 1, 8)
    assert np.array_equal(narrow, np.rint(wide / 65535 * 255).astype(np.uint8))
    grey = zoo.pattern(20, 20, 1)
    assert np.array_equal(decode(zoo.png(grey), 1, 16), grey.astype(np.uint16) * 257)


def test_numpy_files_carry_any_number_of_bands() -> None:
    for dtype, depth in ((np.uint8, 8), (np.uint16, 16)):
        pixels = np.random.default_rng(0).integers(0, 256, (8, 10, 13)).astype(dtype)
        assert np.array_equal(decode(zoo.npy(pixels), 13, depth), pixels)
        assert probe(zoo.npy(pixels)).channels == 13


def test_channels_that_do_not_fit_are_refused() -> None:
    assert fault_of(zoo.npy(np.zeros((8, 8, 5), np.uint8)), 3) == reasons.UNSUPPORTED
    assert fault_of(zoo.png(zoo.pattern(8, 8)), 13) == reasons.UNSUPPORTED


def test_header_check_does_not_decode() -> None:
    header = probe(zoo.bomb())
    assert header.pixels == 30_000 * 30_000


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 4), st.integers(0, 3000), st.integers(0, 255), st.integers(0, 3000))
def test_damage_never_raises_anything_but_a_fault(
    kind: int, place: int, value: int, cut: int
) -> None:
    image = Image.fromarray(zoo.pattern(20, 24))
    formats = ["JPEG", "PNG", "GIF", "TIFF", "WEBP"]
    data = bytearray(zoo.encoded(image, formats[kind]))
    data[place % len(data)] = value
    del data[len(data) - cut % (len(data) // 2) :]
    try:
        header = probe(bytes(data))
        if header.pixels < 10**6:
            assert decode(bytes(data), 3, 8).shape == (header.height, header.width, 3)
    except ImageFault as fault:
        assert fault.reason in reasons.ALL
        assert fault.detail
