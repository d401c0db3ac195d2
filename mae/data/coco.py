"""Images with boxes and masks in COCO's layout.

annotations/*.json beside image folders: instances_train2017.json with train2017/, or train.json
with images/train/, images/ or train/. The split is read from the annotation file's name.
"""

import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae.data.files import read_image
from mae.data.folder import SPLIT_NAMES, held_out_roles
from mae.data.records import Annotation, Record, Rejected, Source
from mae.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _AnnotationFile:
    path: Path
    split: str | None
    content: dict[str, Any]
    images: Path


def open_coco(path: Path, max_pixels: int) -> Source:
    """Return every image of the annotation files, annotated or not, sorted by id within a file.

    Raises DataError when a file, folder or reference is missing or the files contradict.
    """
    files = [_read(file, path) for file in _annotation_files(path)]
    categories = _categories(files)
    given = {file.split for file in files if file.split}
    if given and "train" not in given:
        raise DataError(
            f"{path / 'annotations'} has files for {', '.join(sorted(given))} but none for train"
        )
    roles, carve = held_out_roles(given)
    layout = _describe(files, roles, carve, categories)
    log.info("%s: %s", path, layout)
    records = _records(path, files, roles, carve, max_pixels)
    return Source(records, layout, classes=(), categories=categories, carve=carve)


def _annotation_files(path: Path) -> list[Path]:
    folder = path / "annotations"
    if not folder.is_dir():
        raise DataError(
            f"{path.resolve()} has no annotations/ folder: set data.scenes.path in params.yaml to "
            "a folder with annotations/*.json beside the image folders, or data.scenes.source to "
            "none"
        )
    files = sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
    # COCO ships captions_* and person_keypoints_* of the same images beside instances_*.
    instances = [file for file in files if file.name.startswith("instances")]
    if not files:
        raise DataError(f"{folder.resolve()} has no .json files")
    return instances or files


def _read(file: Path, root: Path) -> _AnnotationFile:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON ({error}): restore it") from None
    missing = {"images", "annotations", "categories"} - set(content if content else ())
    if not isinstance(content, dict) or missing:
        raise DataError(f"{file} lacks {', '.join(sorted(missing))}: it is no COCO instance file")
    if not all({"id", "file_name"} <= set(image) for image in content["images"]):
        raise DataError(f"{file}: an entry of images lacks its id or file_name")
    return _AnnotationFile(file, _split_in(file.stem), content, _image_folder(file, content, root))


def _split_in(stem: str) -> str | None:
    """'instances_train2017' -> 'train'; None where no part of the name is a split."""
    for part in re.split(r"[^a-z]+", stem.lower()):
        if part in SPLIT_NAMES:
            return SPLIT_NAMES[part]
    return None


def _image_folder(file: Path, content: dict[str, Any], root: Path) -> Path:
    """Return the first likely folder that holds the first image listed that can be found."""
    name = re.sub(r"^instances_?", "", file.stem) or file.stem
    plain = re.sub(r"\d+$", "", name)
    below = (name, plain, f"images/{name}", f"images/{plain}", "images", f"{name}/images", "")
    candidates = [root / folder for folder in below]
    names = [image["file_name"] for image in content["images"]]
    for candidate in candidates:
        if candidate.is_dir() and any((candidate / name).exists() for name in names[:100]):
            return candidate
    raise DataError(
        f"none of the images named in {file} (such as {names[0] if names else 'none listed'}) was "
        f"found in {', '.join(f'{root.name}/{folder}' for folder in below[:-1])} or {root.name}"
    )


def _categories(files: list[_AnnotationFile]) -> tuple[str, ...]:
    """Return category names in the order of their ids. The files must agree."""
    names: dict[int, str] = {}
    for file in files:
        for category in file.content["categories"]:
            known = names.setdefault(category["id"], category["name"])
            if known != category["name"]:
                raise DataError(
                    f"{file.path}: category {category['id']} is {category['name']!r} here and "
                    f"{known!r} in another file: make the files agree"
                )
    if len(set(names.values())) < len(names):
        raise DataError(f"{files[0].path.parent}: two categories share one name")
    return tuple(names[number] for number in sorted(names))


def _describe(
    files: list[_AnnotationFile],
    roles: dict[str, str],
    carve: tuple[str, ...],
    categories: tuple[str, ...],
) -> str:
    parts = [
        f"{file.path.name} with {file.images.name}/ "
        f"({len(file.content['images'])} images) is {roles.get(file.split or '', 'all splits')}"
        for file in files
    ]
    carved = f"; {' and '.join(carve)} taken by hash" if carve else ""
    return f"COCO, {len(categories)} categories; {', '.join(parts)}{carved}"


def _records(
    path: Path,
    files: list[_AnnotationFile],
    roles: dict[str, str],
    carve: tuple[str, ...],
    max_pixels: int,
) -> Iterator[Record | Rejected]:
    for file in files:
        split = roles.get(file.split or "")
        by_image = _annotations_by_image(file)
        for image in sorted(file.content["images"], key=lambda image: str(image["file_name"])):
            identity = (file.images.relative_to(path) / image["file_name"]).as_posix()
            found = read_image(file.images / image["file_name"], identity, max_pixels)
            if isinstance(found, Rejected):
                yield found
                continue
            stated = image.get("height"), image.get("width")
            yield Record(
                identity,
                found,
                annotations=by_image[image["id"]],
                split=None if split == "train" and carve else split,
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
            raise DataError(f"{file.path}: an annotation lacks {', '.join(sorted(lacking))}")
        if annotation["category_id"] not in names:
            raise DataError(
                f"{file.path}: annotation {annotation['id']} has category_id "
                f"{annotation['category_id']}, which is not among the categories"
            )
        if annotation["image_id"] not in shapes:
            raise DataError(
                f"{file.path}: annotation {annotation['id']} belongs to image_id "
                f"{annotation['image_id']}, which is not among the images"
            )
        name = names[annotation["category_id"]]
        try:
            by_image[annotation["image_id"]].append(_annotation(annotation, name))
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(
                f"{file.path}: annotation {annotation['id']} is malformed ({error!r})"
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
