"""What a source yields: an image as found, or the reason why there is none.

An annotation is a dict after COCO: {"category": name, "bbox": [x, y, width, height] in pixels,
"segmentation": polygons [[x, y, x, y, ...], ...] or run lengths {"size": [height, width],
"counts": str}, "area": float, "iscrowd": 0 or 1}.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Annotation = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One image with all that is known of it.

    id: unique and stable name; it seeds the image's randomness and, without a `group`, its split.
    image: the bytes as found. label: name of its class, or None. annotations: None where the
    source has none at all, [] for an image on which nothing was marked.
    split: "train", "val" or "test" where the source says so. group: images of one group (a
    patient, a scene, a camera) never fall into different splits.
    drawn_on: height and width in pixels of the image that the annotations were drawn on.
    """

    id: str
    image: bytes
    label: str | None = None
    annotations: list[Annotation] | None = None
    split: str | None = None
    group: str | None = None
    drawn_on: tuple[int, int] | None = None


@dataclass(frozen=True)
class Rejected:
    """An input that never became a Record. reason is one of mae.data.reasons."""

    id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Source:
    """A stream of inputs in a fixed order.

    classes, categories: all names in order where the source knows them beforehand, else None:
    then the names that are met, sorted. carve: the splits still to be taken, by hash, from the
    records that have none; () where the source has all three. layout: what was understood.
    """

    items: Iterator[Record | Rejected]
    layout: str
    classes: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    carve: tuple[str, ...] = ("val", "test")
