"""Everything that is known of one image: decoded once, in any of many processes."""

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from mae.data import reasons
from mae.data.annotations import keep_sound
from mae.data.decoding.channels import fit, to_bit_depth
from mae.data.decoding.decode import load, probe
from mae.data.decoding.image import Found, ImageHeader, Pixels
from mae.data.reasons import ImageFault
from mae.data.records import Annotation, Record
from mae.data.sharding.statistics import PixelSums
from mae.params import DataParams

_ENOUGH_FOR_HASH = 192  # pixels of the shorter side


@dataclass(frozen=True)
class Facts:
    """What manifest.parquet says of an image that decodes; the header's fields are as found.

    bytes, sha256: of the bytes as found. Of the pixels in data.channels and data.bit_depth:
    sums; mean and std over all channels, scaled to 0..1; blank, whether every channel has one
    value throughout. Of the 8-bit grey image: entropy of its histogram in bits, 0..8; phash, the
    64-bit perceptual hash, None where there is nothing to see. annotations: those kept, None
    where the source has none at all.
    """

    height: int
    width: int
    mode: str
    channels: int
    bit_depth: int
    format: str
    orientation: int
    bytes: int
    sha256: str
    phash: int | None
    mean: float
    std: float
    entropy: float
    blank: bool
    annotations: int | None
    annotations_dropped: int
    sums: PixelSums


FACTS = pa.schema(
    [
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("mode", pa.string()),
        ("channels", pa.int64()),
        ("bit_depth", pa.int64()),
        ("format", pa.string()),
        ("orientation", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        ("mean", pa.float64()),
        ("std", pa.float64()),
        ("entropy", pa.float64()),
        ("blank", pa.bool_()),
        ("annotations", pa.int64()),
        ("annotations_dropped", pa.int64()),
        ("sum_pixels", pa.int64()),
        ("sum_total", pa.list_(pa.int64())),
        ("sum_squares", pa.list_(pa.int64())),
    ]
)
_PLAIN = [field.name for field in fields(Facts) if field.name != "sums"]


def facts_row(facts: Facts) -> dict[str, Any]:
    """Return facts as a flat row of the schema FACTS."""
    sums = facts.sums
    return {name: getattr(facts, name) for name in _PLAIN} | {
        "sum_pixels": sums.count,
        "sum_total": list(sums.total),
        "sum_squares": list(sums.squares),
    }


def facts_from_row(row: dict[str, Any]) -> Facts:
    """Return the facts of a row that `facts_row` made; other columns are passed over."""
    sums = PixelSums(row["sum_pixels"], tuple(row["sum_total"]), tuple(row["sum_squares"]))
    return Facts(**{name: row[name] for name in _PLAIN}, sums=sums)


def examine(record: Record, data: DataParams) -> Facts:
    """Read, decode and measure one image; check its annotations.

    Raises ImageFault, whatever the bytes are: a decoder's own error becomes a fault, too.
    """
    content = record.image.read()
    try:
        header = probe(content)
        check_shape(header, data)
        found = load(content)
        marked = record.read_annotations()
        kept = marked
        if marked is not None:
            kept = keep_sound(marked, header.height, header.width, record.drawn_on)
        return _facts(content, header, found, marked, kept, data)
    except ImageFault:
        raise
    except MemoryError:
        raise ImageFault(
            reasons.DAMAGED, "decoding asks for more memory than there is: a damaged header?"
        ) from None
    except Exception as error:  # a decoder's surprise must cost one image, not the run
        raise ImageFault(
            reasons.DAMAGED, f"cannot be decoded ({type(error).__name__}: {error})"
        ) from None


def check_shape(header: ImageHeader, data: DataParams) -> None:
    """Raise ImageFault for a header beyond data.min_side or data.max_pixels."""
    shape = f"{header.height} x {header.width} pixels (height x width)"
    if min(header.height, header.width) < data.min_side:
        raise ImageFault(
            reasons.TOO_SMALL, f"{shape}: a side is below data.min_side {data.min_side}"
        )
    if header.pixels > data.max_pixels:
        raise ImageFault(reasons.TOO_LARGE, f"{shape}: above data.max_pixels {data.max_pixels}")
    if header.pixels * header.channels > 4 * max(data.channels, 4) * data.max_pixels:
        raise ImageFault(
            reasons.TOO_LARGE,
            f"{shape} of {header.channels} channels: more to decode than data.max_pixels "
            f"{data.max_pixels} of data.channels {data.channels} allow",
        )


def _facts(
    content: bytes,
    header: ImageHeader,
    found: Found,
    marked: list[Annotation] | None,
    kept: list[Annotation] | None,
    data: DataParams,
) -> Facts:
    pixels = fit(found, data.channels, data.bit_depth, data.bands, data.depth_range)
    sums = PixelSums.of(pixels)
    (mean,), (std,) = sums.over_channels().moments(data.bit_depth)
    has_alpha = _has_alpha(found, data)
    grey = _grey(to_bit_depth(pixels, 8, data.depth_range), has_alpha)
    seen = grey
    if pixels.dtype == np.uint16 and not sums.is_flat:
        # What a camera of few bits saw is told apart over its own range.
        seen = _grey(to_bit_depth(pixels, 8, (int(pixels.min()), int(pixels.max()))), has_alpha)
    return Facts(
        **vars(header),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        phash=_phash(seen),
        mean=mean,
        std=std,
        entropy=_entropy(grey),
        blank=sums.is_flat,
        annotations=None if kept is None else len(kept),
        annotations_dropped=len(marked or ()) - len(kept or ()),
        sums=sums,
    )


def _has_alpha(found: Found, data: DataParams) -> bool:
    """Return whether the last of the channels that `fit` gives is alpha."""
    count = found.pixels.shape[2]
    if data.bands is not None and count > data.channels:
        return False
    return data.channels in (2, 4) and (found.has_alpha or count in (1, 3))


def _grey(pixels: Pixels, has_alpha: bool) -> Image.Image:
    """Return uint8 pixels (H, W, C) as a grey image: luma, on white; of other bands the mean."""
    channels = pixels.shape[2]
    if channels == 3:
        return Image.fromarray(pixels).convert("L")
    if channels == 1:
        return Image.fromarray(pixels[..., 0])
    if has_alpha:
        return Image.fromarray(fit(Found(pixels, True), 1, 8)[..., 0])
    total = pixels.sum(axis=2, dtype=np.uint32)
    return Image.fromarray(((total + channels // 2) // channels).astype(np.uint8))


def _phash(grey: Image.Image) -> int | None:
    """Return imagehash's 64-bit pHash as a number, None for an image of one grey."""
    import imagehash

    darkest, lightest = grey.getextrema()
    if darkest == lightest:
        return None
    # Its own resampling to 32 x 32 takes as long as decoding. Of photos shrunk before it, one in
    # twenty has a hash of two other bits.
    factor = min(grey.size) // _ENOUGH_FOR_HASH
    small = grey.reduce(factor) if factor > 1 else grey
    return int(str(imagehash.phash(small)), 16)


def _entropy(grey: Image.Image) -> float:
    counts = np.array(grey.histogram())
    shares = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(shares * np.log2(shares)).sum()))
