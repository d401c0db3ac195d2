"""From the channels and depth found to those asked for, by the rules in mae/data/decode.py."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mae.data import reasons
from mae.data.decoding.image import Found, Pixels
from mae.data.reasons import ImageFault

FULL_RANGE = (0, 65535)


def fit(
    found: Found,
    channels: int,
    bit_depth: int,
    bands: tuple[int, ...] | None = None,
    depth_range: tuple[int, int] = FULL_RANGE,
) -> Pixels:
    """Return pixels (H, W, channels), uint8 or uint16. Raises ImageFault where none can be had."""
    return to_bit_depth(_to_channels(found, channels, bands), bit_depth, depth_range)


def to_bit_depth(
    pixels: Pixels, bit_depth: int, depth_range: tuple[int, int] = FULL_RANGE
) -> Pixels:
    if bit_depth == 8 and pixels.dtype == np.uint16:
        return _narrow(*depth_range)[pixels]
    if bit_depth == 16 and pixels.dtype == np.uint8:
        return pixels.astype(np.uint16) * np.uint16(257)
    return pixels


@lru_cache(maxsize=8)
def _narrow(low: int, high: int) -> NDArray[np.uint8]:
    """Return what becomes of each 16-bit value: low and below 0, high and above 255."""
    values = np.arange(65536).clip(low, high) - low
    return ((values * 255 + (high - low) // 2) // (high - low)).astype(np.uint8)


def _to_channels(found: Found, channels: int, bands: tuple[int, ...] | None) -> Pixels:
    pixels, has_alpha, spare = found
    count = pixels.shape[2]
    if bands is not None and count > channels:
        return _take(pixels, bands)
    if count == channels:
        return pixels
    if spare:
        pixels = pixels[..., : count - spare]
    kept = pixels.shape[2]
    if channels > 4 or (not has_alpha and kept not in (1, 3)):
        raise ImageFault(
            reasons.UNSUPPORTED,
            f"has {count} channels where data.channels asks for {channels}"
            + (": data.bands can choose some" if count > channels else ""),
        )
    if kept == channels:
        return pixels
    colour, alpha = (pixels[..., :-1], pixels[..., -1:]) if has_alpha else (pixels, None)
    full = np.iinfo(pixels.dtype).max
    wanted_colour = 1 if channels <= 2 else 3
    if channels in (1, 3):
        colour = colour if alpha is None else _on_white(colour, alpha, full)
        return to_colour(colour, wanted_colour)
    if alpha is None:
        alpha = np.full_like(pixels[..., :1], full)
    return np.concatenate([to_colour(colour, wanted_colour), alpha], axis=2)


def _take(pixels: Pixels, bands: tuple[int, ...]) -> Pixels:
    count = pixels.shape[2]
    if max(bands) >= count:
        raise ImageFault(
            reasons.UNSUPPORTED,
            f"has {count} channels where data.bands asks for number {max(bands)}, counted from 0",
        )
    return pixels[..., list(bands)]


def _on_white(colour: Pixels, alpha: Pixels, full: int) -> Pixels:
    opacity = alpha.astype(np.uint64)
    mixed = colour * opacity + full * (full - opacity)
    return ((mixed + full // 2) // full).astype(colour.dtype)


def to_colour(colour: Pixels, wanted: int) -> Pixels:
    """Return 1 or 3 channels as `wanted` channels, 1 or 3."""
    found = colour.shape[2]
    if found == wanted:
        return colour
    if found == 1:
        return np.repeat(colour, wanted, axis=2)
    wide = colour.astype(np.uint64)
    luma = 19595 * wide[..., 0] + 38470 * wide[..., 1] + 7471 * wide[..., 2] + 0x8000
    return (luma >> 16).astype(colour.dtype)[..., None]
