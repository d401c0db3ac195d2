"""Every kind of image comes out upright, in the channels and bit depth asked for."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mae.data import reasons
from mae.data.decoding.decode import decode, probe
from mae.data.reasons import ImageFault
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


# --- more than 8 bits, other codings ------------------------------------------------------------


def test_a_jpeg_of_twelve_bits() -> None:
    pixels = zoo.pattern(20, 24, 1)[..., 0].astype(np.uint16) * 16
    data = zoo.good_kinds()["twelve.jpg"]
    header = probe(data)
    assert (header.height, header.width, header.bit_depth) == (20, 24, 12)
    assert np.abs(decode(data, 1, 16)[..., 0].astype(int) - pixels).mean() < 40


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_sixteen_bits_and_any_colour_type(channels: int) -> None:
    pixels = zoo.random_pixels(9, 11, channels)
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = zoo.raw_png(9, 11, 16, color, zlib.compress(rows))
    assert np.array_equal(decode(data, channels, 16), pixels)
    assert (probe(data).channels, probe(data).bit_depth) == (channels, 16)
    assert fault_of(data[: len(data) // 2]) == reasons.TRUNCATED


def test_colour_profiles_are_not_applied() -> None:
    image = Image.fromarray(zoo.pattern(20, 24))
    plain = decode(zoo.encoded(image, "JPEG"), 3, 8)
    for wide in (False, True):
        data = zoo.encoded(image, "JPEG", icc_profile=zoo.colour_profile(wide))
        assert np.array_equal(decode(data, 3, 8), plain)


@pytest.mark.parametrize("name", ["progressive.jpg", "arithmetic.jpg", "web.webp", "av1.avif"])
def test_other_codings_look_as_they_should(name: str) -> None:
    seeds = {"progressive.jpg": 5}
    pixels = decode(zoo.good_kinds()[name], 3, 8)
    truth = zoo.pattern(*pixels.shape[:2], seed=seeds.get(name, 0))
    assert np.abs(pixels.astype(int) - truth).mean() < 8


# --- bands and depth range ------------------------------------------------------------------------


def test_bands_are_taken_from_files_with_more_channels_alone() -> None:
    pixels = zoo.random_pixels(9, 11, 6)
    data = zoo.npy(pixels)
    assert np.array_equal(decode(data, 2, 16, bands=(5, 1)), pixels[..., [5, 1]])
    assert np.array_equal(decode(zoo.npy(pixels[..., :2]), 2, 16, bands=(5, 1)), pixels[..., :2])
    grey = zoo.pattern(9, 11, 1)
    assert np.array_equal(decode(zoo.png(grey), 3, 8, bands=(5, 4, 3)), grey.repeat(3, axis=2))
    assert np.array_equal(
        decode(zoo.png(zoo.pattern(9, 11)), 1, 8, bands=(2,)), zoo.pattern(9, 11)[..., 2:]
    )
    with pytest.raises(ImageFault, match=r"6 channels where data\.bands asks for number 6"):
        decode(data, 2, 16, bands=(0, 6))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 65534), st.integers(1, 65535))
def test_the_depth_range_becomes_the_whole_of_eight_bits(low: int, more: int) -> None:
    high = min(low + more, 65535)
    values = np.unique(np.r_[0, 65535, low, high, np.arange(0, 65536, 97)]).astype(np.uint16)
    found = decode(zoo.npy(values[None]), 1, 8, depth_range=(low, high))[0, :, 0]
    exact = (values.astype(float).clip(low, high) - low) * 255 / (high - low)
    assert np.abs(found - exact).max() <= 0.5 + 1e-9
    assert found[np.searchsorted(values, low)] == 0
    assert found[np.searchsorted(values, high)] == 255
    wide = decode(zoo.npy(values[None]), 1, 16, depth_range=(low, high))
    assert np.array_equal(wide[0, :, 0], values)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(zoo.good_kinds())),
    st.integers(1, 4),
    st.sampled_from([8, 16]),
    st.booleans(),
)
def test_what_was_decoded_and_stored_is_decoded_to_itself(
    name: str, channels: int, bit_depth: int, with_bands: bool
) -> None:
    bands = tuple(range(channels))[::-1] if with_bands else None
    options = {"bands": bands, "depth_range": (100, 30_000)}
    once = decode(zoo.good_kinds()[name], channels, bit_depth, **options)
    assert once.shape[2] == channels
    assert np.array_equal(decode(zoo.npy(once), channels, bit_depth, **options), once)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["|u1", "<u2", ">u2"])
def test_numpy_files_in_any_order_of_bytes_and_axes(order: str, dtype: str) -> None:
    pixels = zoo.random_pixels(5, 7, 3).astype(dtype)
    data = zoo.npy(np.asarray(pixels, order=order))
    depth = 16 if dtype.endswith("2") else 8
    assert np.array_equal(decode(data, 3, depth), pixels)


def test_headers_of_the_huge_are_read_without_the_pixels() -> None:
    assert probe(zoo.huge_header()).pixels == 200_000 * 190_000
    assert probe(zoo.npy_header((50_000, 60_000, 3))).pixels == 50_000 * 60_000
