"""Images with boxes and masks in COCO's layout.

annotations/*.json beside image folders: instances_train2017.json with train2017/, or train.json
with images/train/, images/ or train/. The split is read from the annotation file's name.
"""

import json
import logging
import math
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mae.data.reasons import ImageFault
from mae.data.records import Annotation, Record, Rejected, Source
from mae.data.sources.files import LocalFile, Unusable
from mae.data.sources.items import to_item
from mae.data.sources.names import printable
from mae.data.sources.roles import held_out_roles, record_split, say_carve, split_in
from mae.data.sources.trees import Tree
from mae.errors import DataError

log = logging.getLogger(__name__)

_FOLDER = "annotations"


@dataclass(frozen=True)
class _AnnotationFile:
    """images: the folder of its images, "" for the root."""

    name: str
    split: str | None
    content: dict[str, Any]
    images: str


def open_coco(tree: Tree) -> Source:
    """Return every image of the annotation files, annotated or not, sorted by id within a file.

    Raises DataError when a file, folder or reference is missing or the files contradict.
    """
    files = [_read(name, tree) for name in _annotation_files(tree)]
    categories = _categories(files)
    given = {file.split for file in files if file.split}
    if given and "train" not in given:
        raise DataError(
            f"{tree.title}/{_FOLDER} has files for {', '.join(sorted(given))} but none for train"
        )
    roles, carve = held_out_roles(given)
    layout = _describe(files, roles, carve, categories)
    log.info("%s: %s", tree.title, layout)
    records = _records(tree, files, roles, carve)
    return Source(records, layout, classes=(), categories=categories, carve=carve)


def _annotation_files(tree: Tree) -> list[str]:
    folder = _annotation_folder(tree)
    names = [name for name in tree.files(folder) if name.endswith(".json")]
    # COCO ships captions_* and person_keypoints_* of the same images beside instances_*.
    instances = [name for name in names if name.startswith("instances")]
    if not names:
        raise DataError(f"{tree.title}/{folder} has no .json files")
    return [f"{folder}/{name}" for name in instances or names]


def _annotation_folder(tree: Tree) -> str:
    if tree.has_folder(_FOLDER):
        return _FOLDER
    # annotations_trainval2017.zip lies beside train2017.zip as COCO hands them out.
    for name in tree.folders():
        if name.startswith(_FOLDER):
            below = f"{name}/{_FOLDER}"
            return below if tree.has_folder(below) else name
    raise DataError(
        f"{tree.title} has no annotations/ folder: set data.scenes.path in params.yaml to a "
        "folder with annotations/*.json beside the image folders, or data.scenes.source to none"
    )


def _read(name: str, tree: Tree) -> _AnnotationFile:
    where = f"{tree.title}/{name}"
    try:
        content = json.loads(tree.read_text(name))
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON ({error}): restore it") from None
    missing = {"images", "annotations", "categories"} - set(content if content else ())
    if not isinstance(content, dict) or missing:
        raise DataError(f"{where} lacks {', '.join(sorted(missing))}: it is no COCO instance file")
    if not all({"id", "file_name"} <= set(image) for image in content["images"]):
        raise DataError(f"{where}: an entry of images lacks its id or file_name")
    stem = posixpath.splitext(posixpath.basename(name))[0]
    return _AnnotationFile(
        where, split_in(stem), content, _image_folder(where, stem, content, tree)
    )


def _image_folder(where: str, stem: str, content: dict[str, Any], tree: Tree) -> str:
    """Return the first likely folder that holds the first image listed that can be found."""
    name = re.sub(r"^instances_?", "", stem) or stem
    plain = re.sub(r"\d+$", "", name)
    candidates = (name, plain, f"images/{name}", f"images/{plain}", "images", f"{name}/images", "")
    names = [image["file_name"] for image in content["images"]]
    for candidate in candidates:
        if tree.has_folder(candidate) and any(
            _is_there(tree, _joined(candidate, name)) for name in names[:100]
        ):
            return candidate
    raise DataError(
        f"none of the images named in {where} (such as {names[0] if names else 'none listed'}) was "
        f"found in {', '.join(f'{folder}/' for folder in candidates[:-1])} or the root of "
        f"{tree.title}"
    )


def _is_there(tree: Tree, name: str) -> bool:
    location = tree.find(name)
    if isinstance(location, LocalFile):
        try:
            location.stamp()
        except ImageFault:
            return False
    return not isinstance(location, Unusable)


def _joined(folder: str, name: str) -> str:
    """Return the image's name in the tree; one that says ../ may, while it stays in the tree."""
    return posixpath.normpath(posixpath.join(folder, name))


def _categories(files: list[_AnnotationFile]) -> tuple[str, ...]:
    """Return category names in the order of their ids. The files must agree."""
    names: dict[int, str] = {}
    for file in files:
        for category in file.content["categories"]:
            known = names.setdefault(category["id"], category["name"])
            if known != category["name"]:
                raise DataError(
                    f"{file.name}: category {category['id']} is {category['name']!r} here and "
                    f"{known!r} in another file: make the files agree"
                )
    if len(set(names.values())) < len(names):
        raise DataError(f"{files[0].name}: two categories share one name")
    return tuple(names[number] for number in sorted(names))


def _describe(
    files: list[_AnnotationFile],
    roles: dict[str, str],
    carve: tuple[str, ...],
    categories: tuple[str, ...],
) -> str:
    parts = [
        f"{posixpath.basename(file.name)} with {posixpath.basename(file.images)}/ "
        f"({len(file.content['images'])} images) is {roles.get(file.split or '', 'all splits')}"
        for file in files
    ]
    return f"COCO, {len(categories)} categories; {', '.join(parts)}{say_carve(carve)}"


def _records(
    tree: Tree, files: list[_AnnotationFile], roles: dict[str, str], carve: tuple[str, ...]
) -> Iterator[Record | Rejected]:
    yield from tree.strays
    for file in files:
        split = record_split(file.split, roles, carve)
        by_image = _annotations_by_image(file)
        for image in sorted(file.content["images"], key=lambda image: str(image["file_name"])):
            name = _joined(file.images, image["file_name"])
            stated = image.get("height"), image.get("width")
            yield to_item(
                printable(name),
                name,
                tree.find(name),
                annotations=by_image.get(image["id"], []),
                split=split,
                drawn_on=stated if all(isinstance(side, int) for side in stated) else None,
            )


def _annotations_by_image(file: _AnnotationFile) -> dict[int, list[Annotation]]:
    names = {category["id"]: category["name"] for category in file.content["categories"]}
    shapes = {
        image["id"]: (image.get("height"), image.get("width")) for image in file.content["images"]
    }
    by_image: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in file.content["annotations"]:
        lacking = {"id", "category_id", "image_id"} - set(annotation)
        if lacking:
            raise DataError(f"{file.name}: an annotation lacks {', '.join(sorted(lacking))}")
        if annotation["category_id"] not in names:
            raise DataError(
                f"{file.name}: annotation {annotation['id']} has category_id "
                f"{annotation['category_id']}, which is not among the categories"
            )
        if annotation["image_id"] not in shapes:
            raise DataError(
                f"{file.name}: annotation {annotation['id']} belongs to image_id "
                f"{annotation['image_id']}, which is not among the images"
            )
        name = names[annotation["category_id"]]
        try:
            by_image[annotation["image_id"]].append(_annotation(annotation, name))
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(
                f"{file.name}: annotation {annotation['id']} is malformed ({error!r})"
            ) from None
    return by_image


def _annotation(found: dict[str, Any], category: str) -> Annotation:
    box = [float(value) for value in found.get("bbox") or ()]
    return {
        "category": category,
        "bbox": box,
        "segmentation": _segmentation(found.get("segmentation")),
        "area": float(found.get("area", math.prod(box[2:]))),
        "iscrowd": int(found.get("iscrowd", 0)),
    }


def _segmentation(found: Any) -> Any:
    """Return polygons as they are and run lengths compressed; [] stands for the whole box."""
    if isinstance(found, dict) and isinstance(found["counts"], list):
        from pycocotools import mask as coco_mask

        packed = coco_mask.frPyObjects(found, *found["size"])
        return {"size": list(packed["size"]), "counts": packed["counts"].decode("ascii")}
    return found or []
