"""Images with boxes in the layout of Pascal VOC.

JPEGImages/, Annotations/*.xml and ImageSets/Main/{train,val,trainval,test}.txt, at the root or in
a folder for each year. Boxes become COCO's: [x, y, width, height] from 0, where VOC counts from 1
and includes the last pixel. An object that is marked difficult is an object like the others here;
its annotation says "difficult": 1.
"""

import logging
import math
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Annotation, Location, Record, Rejected, Source
from mae.data.sources.files import Unusable
from mae.data.sources.items import to_item
from mae.data.sources.names import has_image_suffix, printable
from mae.data.sources.roles import held_out_roles, record_split, say_carve
from mae.data.sources.trees import Tree
from mae.errors import DataError

log = logging.getLogger(__name__)

_IMAGES, _MARKS, _SETS = "JPEGImages", "Annotations", "ImageSets/Main"
# Later lists win: trainval is both, and says nothing that the others do not say better.
_LISTS = (("trainval", "train"), ("train", "train"), ("val", "val"), ("test", "test"))


@dataclass(frozen=True)
class _Year:
    """One folder with JPEGImages: its name with a slash or "", and split by image name."""

    prefix: str
    splits: dict[str, str]


def open_voc(tree: Tree) -> Source:
    """Return the images that ImageSets/Main lists, or all of them where there are no lists.

    Their annotations are read when they are asked for. Raises DataError when a folder is missing
    or the lists have no train.
    """
    years = [_Year(prefix, _splits(tree, prefix)) for prefix in _prefixes(tree)]
    given = {split for year in years for split in year.splits.values()}
    if given and "train" not in given:
        raise DataError(f"{tree.title}: {_SETS} lists {', '.join(sorted(given))} but not train")
    roles, carve = held_out_roles(given)
    said = ", ".join(f"{split} is {roles[split]}" for split in sorted(given)) or "no lists"
    layout = f"Pascal VOC, {len(years)} image folders; {said}{say_carve(carve)}"
    log.info("%s: %s", tree.title, layout)
    return Source(_records(tree, years, roles, carve), layout, classes=(), carve=carve)


def _prefixes(tree: Tree) -> list[str]:
    if tree.has_folder(_IMAGES):
        return [""]
    years = [f"{name}/" for name in tree.folders() if tree.has_folder(f"{name}/{_IMAGES}")]
    if not years:
        raise DataError(
            f"{tree.title} has no {_IMAGES}/ folder: set data.scenes.path in params.yaml to a "
            f"folder with {_IMAGES}/ and {_MARKS}/"
        )
    return years


def _splits(tree: Tree, prefix: str) -> dict[str, str]:
    if not tree.has_folder(f"{prefix}{_MARKS}"):
        raise DataError(f"{tree.title}/{prefix} has {_IMAGES}/ but no {_MARKS}/ folder")
    splits: dict[str, str] = {}
    lists = tree.files(f"{prefix}{_SETS}")
    for name, split in _LISTS:
        if f"{name}.txt" in lists:
            text = tree.read_text(f"{prefix}{_SETS}/{name}.txt")
            splits.update((line.split()[0], split) for line in text.splitlines() if line.strip())
    return splits


def _records(
    tree: Tree, years: list[_Year], roles: dict[str, str], carve: tuple[str, ...]
) -> Iterator[Record | Rejected]:
    yield from tree.strays
    listed = any(year.splits for year in years)
    for year in years:
        images = {
            posixpath.splitext(name)[0]: (name, location)
            for name, location in tree.files(year.prefix + _IMAGES).items()
            if has_image_suffix(name)
        }
        marks = tree.files(year.prefix + _MARKS)
        names = sorted(year.splits if listed else images)
        if len(images) > len(names):
            log.info(
                "%s: %d images that no list names are not used",
                *(f"{tree.title}/{year.prefix}{_IMAGES}", len(images.keys() - set(names))),
            )
        for name in names:
            identity = printable(f"{year.prefix}{_IMAGES}/{name}")
            if name not in images:
                yield Rejected(identity, reasons.MISSING, f"{_SETS} lists it, but it is not there")
                continue
            file, location = images[name]
            split = record_split(year.splits.get(name), roles, carve)
            identity = printable(f"{year.prefix}{_IMAGES}/{file}")
            yield _item(identity, file, location, marks.get(f"{name}.xml"), split)


def _item(
    identity: str, file: str, location: Location, marks: Location | None, split: str | None
) -> Record | Rejected:
    if marks is None:
        detail = f"{_MARKS}/ has no .xml of this name"
        return Rejected(identity, reasons.BAD_ANNOTATION, detail)
    if isinstance(marks, Unusable):
        return Rejected(identity, reasons.BAD_ANNOTATION, f"its annotations: {marks.detail}")
    return to_item(identity, file, location, annotations=VocAnnotations(marks), split=split)


@dataclass(frozen=True, slots=True)
class VocAnnotations:
    """The objects of one XML file, read when called."""

    location: Location

    def __call__(self) -> list[Annotation]:
        """Raises ImageFault where the file cannot be read or an object lacks its name or box."""
        try:
            content = self.location.read()
        except ImageFault as fault:
            raise ImageFault(reasons.BAD_ANNOTATION, f"its .xml: {fault.detail}") from None
        try:
            root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
            return [_annotation(found) for found in root.iter("object")]
        except (ElementTree.ParseError, LookupError, TypeError, ValueError) as error:
            raise ImageFault(reasons.BAD_ANNOTATION, f"its .xml is malformed ({error})") from None


class _NoDoctype(ElementTree.TreeBuilder):
    """Entities can grow without bound or name other files; they need a DOCTYPE, VOC has none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ImageFault(reasons.BAD_ANNOTATION, "its .xml has a DOCTYPE, which is not read")


def _annotation(found: ElementTree.Element) -> Annotation:
    box = found.find("bndbox")
    name = (found.findtext("name") or "").strip()
    if box is None or not name:
        raise ValueError("an object has no name or no bndbox")
    left, top, right, bottom = (
        float(box.findtext(side) or "nan") for side in ("xmin", "ymin", "xmax", "ymax")
    )
    width, height = right - left + 1, bottom - top + 1
    if not all(map(math.isfinite, (left, top, width, height))):
        raise ValueError(f"the box of {name!r} lacks a side")
    annotation: Annotation = {
        "category": name,
        "bbox": [left - 1, top - 1, width, height],
        "segmentation": [],
        "area": width * height,
        "iscrowd": 0,
    }
    if (found.findtext("difficult") or "").strip() == "1":
        annotation["difficult"] = 1
    return annotation
