"""A folder of images: flat, one folder per class, or train/val/test folders of either kind."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mae.data.files import ImageFiles, child_folders, loose_images, read_image
from mae.data.records import Record, Rejected, Source
from mae.errors import DataError

log = logging.getLogger(__name__)

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class _Part:
    """A folder whose images share a split: `prefix` is its relative path, "" for the root."""

    prefix: str
    split: str | None


def open_folder(path: Path, max_pixels: int) -> Source:
    """Decide the layout by what is there, say so in the log, and return the images.

    An image's id is its path relative to `path`, its label the first folder below the split.
    Raises DataError when there is no such folder, nothing in it, or no train folder.
    """
    if not path.is_dir():
        raise DataError(
            f"the image folder {path.resolve()} does not exist: set data.images.path in params.yaml"
        )
    parts, carve = _parts(path)
    classes, loose = _classes(path, parts)
    layout = _describe(parts, carve, classes, loose)
    log.info("%s: %s", path, layout)
    return Source(_records(path, parts, classes, max_pixels), layout, classes=classes, carve=carve)


def held_out_roles(given: set[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return given split -> split it becomes, and the splits to carve out of train.

    People's `val` is often the only held-out set they have, as in ImageNet and COCO: then it is
    measured on once, as test, and val comes out of train.
    """
    roles = {split: split for split in given}
    if given == {"train", "val"}:
        roles["val"] = "test"
    return roles, tuple(split for split in ("val", "test") if split not in roles.values())


def _parts(path: Path) -> tuple[list[_Part], tuple[str, ...]]:
    folders = child_folders(path)
    named = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    given = set(named.values())
    if "train" not in given:
        if folders and len(named) == len(folders):
            raise DataError(
                f"{path} has {', '.join(sorted(named))} but no train folder: add train/ or point "
                "data.images.path at the folder that holds it"
            )
        return [_Part("", None)], ("val", "test")
    if len(given) < len(named):
        raise DataError(f"{path} has two folders for one split among {sorted(named)}: rename one")
    roles, carve = held_out_roles(given)
    _mention_what_is_left_out(path, set(named))
    parts = [
        _Part(f"{name}/", None if split == "train" and carve else roles[split])
        for name, split in sorted(named.items())
    ]
    return parts, carve


def _mention_what_is_left_out(path: Path, used: set[str]) -> None:
    others = [name for name in child_folders(path) if name not in used]
    outside = [f"{other}/{name}" for other in others for name in ImageFiles(path / other)]
    outside += loose_images(path)
    if outside:
        log.warning(
            "%s: %d images outside %s are not used, %s for example",
            *(path, len(outside), ", ".join(sorted(used)), outside[0]),
        )


def _classes(path: Path, parts: list[_Part]) -> tuple[tuple[str, ...], bool]:
    """Return the class names, and whether some images lie loose beside the class folders.

    One folder alone is a wrapper (images/), not a class: it tells nothing apart.
    """
    folders = [path / part.prefix for part in parts]
    classes = sorted({_printable(name) for folder in folders for name in child_folders(folder)})
    if len(classes) < 2:
        return (), False
    return tuple(classes), any(loose_images(folder) for folder in folders)


def _describe(
    parts: list[_Part], carve: tuple[str, ...], classes: tuple[str, ...], loose: bool
) -> str:
    labels = f"{len(classes)} class folders ({_some(classes)})" if classes else "no class folders"
    sentence = f"{labels}; "
    if parts == [_Part("", None)]:
        sentence += "no split folders, so val and test are taken by hash"
    else:
        roles = [f"{part.prefix} is {part.split or 'train'}" for part in parts]
        sentence += ", ".join(roles)
        if carve:
            sentence += f"; {' and '.join(carve)} taken from train by hash"
    if loose:
        sentence += "; images beside the class folders have no label"
    return sentence


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])}, ..."


def _records(
    path: Path, parts: list[_Part], classes: tuple[str, ...], max_pixels: int
) -> Iterator[Record | Rejected]:
    seen = 0
    for part in parts:
        files = ImageFiles(path / part.prefix)
        for name in files:
            seen += 1
            yield _record(path, part, name, bool(classes), max_pixels)
        if files.ignored:
            log.info("%s: %d files that are no images ignored", path / part.prefix, files.ignored)
    if not seen:
        raise DataError(
            f"{path.resolve()} holds no image files: set data.images.path in params.yaml to the "
            "folder that holds the images (archives must be unpacked first)"
        )


def _record(
    path: Path, part: _Part, name: str, labelled: bool, max_pixels: int
) -> Record | Rejected:
    identity = _printable(part.prefix + name)
    found = read_image(path / part.prefix / name, identity, max_pixels)
    if isinstance(found, Rejected):
        return found
    label = _printable(name.split("/", 1)[0]) if labelled and "/" in name else None
    return Record(identity, found, label=label, split=part.split)


def _printable(name: str) -> str:
    """Return the name as valid text: bytes that are no UTF-8 appear as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
