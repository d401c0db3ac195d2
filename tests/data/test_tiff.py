"""TIFF of every layout comes out as it went in, or is refused with advice."""

import numpy as np
import pytest

from mae.data import reasons
from mae.data.decoding.decode import decode, probe
from mae.data.reasons import ImageFault
from tests.data import zoo


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "lzw"},
        {"compression": "zlib", "predictor": True},
        {"compression": "zstd", "tile": (16, 16)},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"rowsperstrip": 3},
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("channels", [3, 5, 13])
def test_tiff_of_any_bands_comes_out_as_it_went_in(
    channels: int, planes: bool, dtype: type, options: dict
) -> None:
    pixels = zoo.random_pixels(35, 41, channels, dtype=dtype)
    data = zoo.tiff(
        pixels.transpose(2, 0, 1) if planes else pixels,
        photometric="rgb" if channels == 3 else "minisblack",
        planarconfig="separate" if planes else "contig",
        **options,
    )
    depth = 8 if dtype is np.uint8 else 16
    assert np.array_equal(decode(data, channels, depth), pixels)
    header = probe(data)
    assert (header.height, header.width, header.channels) == (35, 41, channels)
    assert header.bit_depth == depth


@pytest.mark.parametrize("compression", ["webp", "jpeg2000", "png", "lerc", "lzma", "packbits"])
def test_rare_compressions(compression: str) -> None:
    pixels = zoo.pattern(32, 48)
    data = zoo.tiff(
        pixels,
        photometric="rgb",
        compression=compression,
        compressionargs={"lossless": True} if compression == "webp" else None,
    )
    assert np.array_equal(decode(data, 3, 8), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_wide_tiff_is_turned_as_pillow_turns_plain_tiff(orientation: int, channels: int) -> None:
    plain, wide = zoo.random_pixels(12, 17, dtype=np.uint8), zoo.random_pixels(12, 17, channels)
    tag = [(274, "H", 1, orientation, True)]
    wide[..., 0] = plain * np.uint16(257)
    data = zoo.tiff(
        wide if channels > 1 else wide[..., 0],
        photometric="rgb" if channels == 3 else "minisblack",
        planarconfig="contig",
        extratags=tag,
    )
    expected = decode(zoo.tiff(plain, extratags=tag), 1, 8)[..., 0]
    found = decode(data, channels, 16)
    assert np.array_equal(found[..., 0] // 257, expected)
    header = probe(data)
    assert (header.height, header.width) == found.shape[:2]
    assert header.orientation == orientation


def test_alpha_of_sixteen_bits_is_kept_and_taken_out_where_it_was_multiplied_in() -> None:
    pixels = zoo.random_pixels(9, 11, 4)
    plain = zoo.tiff(pixels, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(decode(plain, 4, 16), pixels)
    pixels[..., 3] = np.maximum(pixels[..., 3], 30_000)
    share = pixels[..., 3:] / 65535
    mixed = pixels.copy()
    mixed[..., :3] = np.rint(pixels[..., :3] * share)
    found = decode(zoo.tiff(mixed, photometric="rgb", extrasamples=["assocalpha"]), 4, 16)
    assert np.abs(found.astype(int) - pixels).max() <= 2
    assert decode(plain, 3, 8).shape == (9, 11, 3)


def test_channels_without_a_meaning_are_left_out_unless_asked_for() -> None:
    pixels = zoo.random_pixels(9, 11, 4, dtype=np.uint8)
    data = zoo.tiff(pixels, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(decode(data, 3, 8), pixels[..., :3])
    assert np.array_equal(decode(data, 4, 8), pixels)
    assert np.array_equal(decode(data, 1, 8), decode(zoo.png(pixels[..., :3]), 1, 8))
    assert np.array_equal(decode(data, 3, 8, bands=(3, 0, 1)), pixels[..., [3, 0, 1]])


def test_of_several_bands_none_is_left_out_unasked() -> None:
    for count in (2, 4, 5):
        with pytest.raises(ImageFault, match=r"data\.bands") as caught:
            decode(zoo.bands(count), 1, 8)
        assert caught.value.reason == reasons.UNSUPPORTED
    assert np.array_equal(decode(zoo.bands(4), 4, 8), zoo.pattern(20, 24, 4))


def test_white_may_be_zero() -> None:
    pixels = zoo.random_pixels(9, 11)
    data = zoo.tiff(pixels, photometric="miniswhite")
    assert np.array_equal(decode(data, 1, 16)[..., 0], 65535 - pixels)


def test_of_several_pages_the_first_is_taken() -> None:
    pages = zoo.random_pixels(3, 9, 11)
    for dtype, depth in ((np.uint8, 8), (np.uint16, 16)):
        data = zoo.tiff(pages.astype(dtype), photometric="minisblack")
        assert np.array_equal(decode(data, 1, depth)[..., 0], pages[0].astype(dtype))


@pytest.mark.parametrize(
    "dtype", [np.int8, np.int16, np.int32, np.float16, np.float32, np.complex64]
)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_other_numbers_are_refused_with_advice(dtype: type, channels: int) -> None:
    pixels = np.full((9, 11, channels), -3).astype(dtype)
    data = zoo.tiff(
        pixels if channels > 1 else pixels[..., 0],
        photometric="rgb" if channels == 3 else "minisblack",
        planarconfig="contig",
    )
    with pytest.raises(ImageFault, match="save as") as caught:
        probe(data)
        decode(data, channels, 8)
    assert caught.value.reason == reasons.UNSUPPORTED


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_cameras_bits_keep_their_values(bits: int) -> None:
    pixels = zoo.random_pixels(9, 24) >> (16 - bits)
    data = zoo.tiff(pixels, bitspersample=bits)
    assert probe(data).bit_depth == bits
    assert np.array_equal(decode(data, 1, 16)[..., 0], pixels)
    full = (1 << bits) - 1
    shown = decode(data, 1, 8, depth_range=(0, full))[..., 0]
    assert np.array_equal(shown, np.floor(pixels * (255 / full) + 0.5))
