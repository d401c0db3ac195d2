"""What a source lists: where each image's bytes are and what is known of it.

An annotation is a dict after COCO: {"category": name, "bbox": [x, y, width, height] in pixels,
"segmentation": polygons [[x, y, x, y, ...], ...] or run lengths {"size": [height, width],
"counts": str}, "area": float, "iscrowd": 0 or 1}.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Annotation = dict[str, Any]


class Location(Protocol):
    """Where bytes are: a file, a member of an archive, an object in a bucket. Can be pickled."""

    def read(self) -> bytes:
        """Return the bytes as found. Raises ImageFault where they cannot be had."""

    def stamp(self) -> str:
        """Return what changes when the bytes do (a size and a time, an ETag), without reading
        them. Raises ImageFault as `read` does."""


@dataclass(frozen=True)
class Inline:
    """Bytes that are in memory already."""

    content: bytes

    def read(self) -> bytes:
        return self.content

    def stamp(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True)
class Record:
    """One image with all that is known of it.

    id: unique and stable name; it seeds the image's randomness and, without a `group`, its split.
    image: where the bytes are. label: name of its class, or None. annotations: the list, or a
    function that can be pickled and reads it; None where the source has none at all, [] for an
    image on which nothing was marked. split: "train", "val" or "test" where the source says so.
    group: images of one group (a patient, a scene, a camera) never fall into different splits.
    drawn_on: height and width in pixels of the image that the annotations were drawn on.
    columns: whatever else the source's table says of it, kept in the manifest.
    """

    id: str
    image: Location
    label: str | None = None
    annotations: list[Annotation] | Callable[[], list[Annotation]] | None = None
    split: str | None = None
    group: str | None = None
    drawn_on: tuple[int, int] | None = None
    columns: Mapping[str, Any] | None = None

    def read_annotations(self) -> list[Annotation] | None:
        """Return the annotations. Raises ImageFault where their file cannot be used."""
        return self.annotations() if callable(self.annotations) else self.annotations


@dataclass(frozen=True)
class Rejected:
    """An input that never became a Record. reason is one of mae.data.reasons."""

    id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Source:
    """A listing of inputs. Their order plays no part: they are sorted by id before use.

    items: quick to iterate, since nothing is decoded and no image's bytes are read.
    classes, categories: all names in order where the source knows them beforehand, else None:
    then the names that are met, sorted. carve: the splits still to be taken, by hash, from the
    records that have none; () where the source has all three. layout: what was understood.
    """

    items: Iterator[Record | Rejected]
    layout: str
    classes: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    carve: tuple[str, ...] = ("val", "test")
