"""Images for eyes: any channels and bit depth as RGB, samples of a dataset, pictures in a page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mae.data.reader import ShardReader

Item = TypeVar("Item")

_THUMBNAIL = 96
_WIDE = 1.8  # times its height
_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Sample:
    """One image of a dataset as a data URI, its key, and its label or None."""

    uri: str
    key: str
    label: str | None


@dataclass(frozen=True)
class Picture:
    """A picture file as a data URI. wide: too wide to be read when it is as narrow as a phone."""

    uri: str
    wide: bool

    @classmethod
    def of(cls, path: Path) -> "Picture":
        with Image.open(path) as image:
            return cls(embedded(path), image.width > _WIDE * image.height)


def displayed(planes: NDArray) -> NDArray[np.uint8]:
    """Return pixels (C, H, W) on a scale of 0 to 1 as RGB (H, W, 3), clipped.

    1 or 2 channels are shown grey (the second is alpha), of more the first three as colour.
    """
    shown = planes[:3] if len(planes) >= 3 else np.repeat(planes[:1], 3, axis=0)
    return np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def sample_images(shards: Path, split: str, count: int) -> list[Sample]:
    """Return up to `count` images of a split, as evenly over its labels as they come."""
    reader = ShardReader(shards, split)
    full = reader.info.statistics.full_scale
    samples = []
    for position in _spread_over_labels(reader.labels, count):
        planes = reader.pixels(position).transpose(2, 0, 1) / full
        label = int(reader.labels[position])
        samples.append(
            Sample(
                uri=_thumbnail(displayed(planes)),
                key=reader.keys[position],
                label=reader.info.classes[label] if label >= 0 else None,
            )
        )
    return samples


def _spread_over_labels(labels: torch.Tensor, count: int) -> list[int]:
    """Return positions: the first image of each label, then the second of each, and so on.

    With more labels than `count`, evenly spaced labels; without labels, evenly spaced images.
    """
    groups = [(labels == label).nonzero()[:, 0].tolist() for label in labels.unique().tolist()]
    if len(groups) == 1:
        return _evenly(groups[0], count)
    groups = [_evenly(group, -(-count // len(groups))) for group in _evenly(groups, count)]
    turns = [group[turn : turn + 1] for turn in range(count) for group in groups]
    return [position for turn in turns for position in turn][:count]


def _evenly(items: list[Item], count: int) -> list[Item]:
    wanted = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[index] for index in wanted]


def _thumbnail(picture: NDArray[np.uint8]) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return data_uri(buffer.getvalue(), "image/png")


def embedded(path: Path) -> str:
    """Return a picture file as a data URI."""
    return data_uri(path.read_bytes(), _MIME[path.suffix])


def data_uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
