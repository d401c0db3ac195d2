"""Images with a label image each, in which every value stands for a category.

images/ and labels/ (or masks/, annotations/) with the same file stems, each with train/, val/
and test/ folders or without. 0 is background; 255, in 16 bits also 65535, is void, unless
classes.txt names it. classes.txt, at the root: "7 road" names a value; lines without a value name
1, 2, 3, ..., or 0, 1, 2, ... where the first is "background".
"""

import io
import logging
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.data import reasons
from mae.data.annotations import annotation_of
from mae.data.reasons import ImageFault
from mae.data.records import Annotation, Location, Record, Rejected, Source
from mae.data.sources.files import Unusable
from mae.data.sources.items import to_item
from mae.data.sources.names import printable
from mae.data.sources.roles import SPLIT_NAMES, held_out_roles, record_split, say_carve
from mae.data.sources.trees import FilesBelow, Tree
from mae.errors import DataError

log = logging.getLogger(__name__)

_IMAGES = "images"
_LABELS = ("labels", "masks", "annotations")
_CLASSES = "classes.txt"
_BACKGROUND = 0
_VOID = frozenset({255, 65535})
# Formats that keep every value; JPEG does not.
_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "PPM")
_MODES = {"1", "L", "P", "I;16", "I;16B", "I;16L", "I"}


@dataclass(frozen=True)
class _Part:
    """Folders of images and label images that share a split, which is None for all splits."""

    images: str
    labels: str
    split: str | None


def open_label_images(tree: Tree, max_pixels: int) -> Source:
    """Return the images; a label image is read when its annotations are asked for.

    Raises DataError when there are no such folders or no train among their splits.
    """
    parts = _parts(tree)
    given = {part.split for part in parts if part.split}
    if given and "train" not in given:
        raise DataError(f"{tree.title} has {', '.join(sorted(given))} but no train folder")
    roles, carve = held_out_roles(given)
    names = read_class_names(tree)
    categories = tuple(names[value] for value in sorted(names) if value != _BACKGROUND) or None
    said = ", ".join(f"{part.images}/ with {part.labels}/" for part in parts)
    layout = f"label images, {len(categories or ()) or 'unnamed'} categories; {said}"
    layout += say_carve(carve)
    log.info("%s: %s", tree.title, layout)
    records = _records(tree, parts, roles, carve, names, max_pixels)
    return Source(records, layout, classes=(), categories=categories, carve=carve)


def _parts(tree: Tree) -> list[_Part]:
    """images/train + labels/train, or train/images + train/labels, or images + labels."""
    parts = _pair(tree, "", None)
    if parts:
        return parts
    for name in tree.folders():
        if name.lower() in SPLIT_NAMES:
            parts += _pair(tree, f"{name}/", SPLIT_NAMES[name.lower()])
    if not parts:
        raise DataError(
            f"{tree.title} has no images/ folder with labels/, masks/ or annotations/ beside it: "
            "set data.scenes.path in params.yaml to the folder that has"
        )
    return parts


def _pair(tree: Tree, prefix: str, split: str | None) -> list[_Part]:
    labels = next((name for name in _LABELS if tree.has_folder(prefix + name)), None)
    if labels is None or not tree.has_folder(prefix + _IMAGES):
        return []
    images, labels = prefix + _IMAGES, prefix + labels
    below = [name for name in tree.folders(images) if name.lower() in SPLIT_NAMES]
    if split is not None or not below:
        return [_Part(images, labels, split)]
    return [_Part(f"{images}/{one}", f"{labels}/{one}", SPLIT_NAMES[one.lower()]) for one in below]


def read_class_names(tree: Tree) -> dict[int, str]:
    """Return value -> name from classes.txt at the root, {} where there is none."""
    if _CLASSES not in tree.files():
        return {}
    lines = [line.strip() for line in tree.read_text(_CLASSES).splitlines() if line.strip()]
    numbered = [re.fullmatch(r"(\d+)\s*[\s:,;=]\s*(.+)", line) for line in lines]
    if all(numbered):
        pairs = [(int(match[1]), match[2].strip()) for match in numbered if match]
    else:
        first = 0 if lines and lines[0].lower() == "background" else 1
        pairs = list(enumerate(lines, start=first))
    names = dict(pairs)
    if len(names) < len(pairs) or len(set(names.values())) < len(names):
        raise DataError(f"{tree.title}/{_CLASSES} has a value or a name twice")
    return names


def _records(
    tree: Tree,
    parts: list[_Part],
    roles: dict[str, str],
    carve: tuple[str, ...],
    names: dict[int, str],
    max_pixels: int,
) -> Iterator[Record | Rejected]:
    yield from tree.strays
    reader = LabelReader(tuple(sorted(names.items())), max_pixels)
    seen = 0
    for part in parts:
        split = record_split(part.split, roles, carve)
        labels = {posixpath.splitext(name)[0]: at for name, at in FilesBelow(tree, part.labels)}
        for name, location in FilesBelow(tree, part.images):
            seen += 1
            identity = printable(f"{part.images}/{name}")
            label = labels.pop(posixpath.splitext(name)[0], None)
            yield _item(identity, name, location, label, reader, split)
        if labels:
            log.warning(
                "%s/%s: %d label images have no image, %s for example",
                *(tree.title, part.labels, len(labels), printable(min(labels))),
            )
    if not seen:
        raise DataError(f"{tree.title}/{_IMAGES} holds no image files: set data.scenes.path")


def _item(
    identity: str,
    name: str,
    location: Location,
    label: Location | None,
    reader: "LabelReader",
    split: str | None,
) -> Record | Rejected:
    if label is None:
        return Rejected(identity, reasons.BAD_ANNOTATION, "no label image has its name")
    if isinstance(label, Unusable):
        return Rejected(identity, reasons.BAD_ANNOTATION, f"its label image: {label.detail}")
    marks = LabelAnnotations(label, reader)
    return to_item(identity, name, location, annotations=marks, split=split)


@dataclass(frozen=True, slots=True)
class LabelReader:
    """How label images are read: the values' names, and the most pixels."""

    names: tuple[tuple[int, str], ...]
    max_pixels: int

    def values(self, content: bytes) -> NDArray[np.integer]:
        """Return the label image's values (H, W). Raises ImageFault where it holds no values."""
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                self._check(image)
                return np.asarray(image).astype(np.int64)
        except ImageFault:
            raise
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            raise _fault(f"cannot be read as {', '.join(_FORMATS)} ({error})") from None

    def _check(self, image: Image.Image) -> None:
        if image.mode not in _MODES:
            raise _fault(f"has mode {image.mode}: store one channel of category numbers")
        if image.width * image.height > self.max_pixels:
            raise _fault(f"has {image.height} x {image.width} pixels, above data.max_pixels")

    def annotations(self, values: NDArray[np.integer]) -> list[Annotation]:
        names = dict(self.names)
        return [
            annotation_of(names.get(value, str(value)), values == value)
            for value in np.unique(values).tolist()
            if value != _BACKGROUND and (value in names or value not in _VOID)
        ]


@dataclass(frozen=True, slots=True)
class LabelAnnotations:
    """One annotation for every value in a label image, made when called."""

    location: Location
    reader: LabelReader

    def __call__(self) -> list[Annotation]:
        """Raises ImageFault where the label image cannot be used."""
        try:
            content = self.location.read()
        except ImageFault as fault:
            raise _fault(fault.detail) from None
        return self.reader.annotations(self.reader.values(content))


def _fault(what: str) -> ImageFault:
    return ImageFault(reasons.BAD_ANNOTATION, f"its label image {what}")
