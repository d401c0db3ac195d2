"""A tree of images: flat, one folder per class, or train/val/test folders of either kind."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from mae.data.records import Record, Rejected, Source
from mae.data.sources.items import to_item
from mae.data.sources.names import printable
from mae.data.sources.roles import SPLIT_NAMES, held_out_roles, record_split
from mae.data.sources.trees import FilesBelow, Tree
from mae.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """A folder whose images share a split: `prefix` is its relative path, "" for the root."""

    prefix: str
    split: str | None

    @property
    def folder(self) -> str:
        return self.prefix.rstrip("/")


def open_folder(tree: Tree) -> Source:
    """Decide the layout by what is there, say so in the log, and return the images.

    An image's id is its path relative to the root, its label the first folder below the split.
    Raises DataError when there is no image or no train folder.
    """
    parts, carve = _parts(tree)
    classes, loose = _classes(tree, parts)
    layout = _describe(parts, carve, classes, loose)
    log.info("%s: %s", tree.title, layout)
    return Source(_records(tree, parts, classes), layout, classes=classes, carve=carve)


def _parts(tree: Tree) -> tuple[list[_Part], tuple[str, ...]]:
    folders = tree.folders()
    named = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    given = set(named.values())
    if "train" not in given:
        if folders and len(named) == len(folders):
            raise DataError(
                f"{tree.title} has {', '.join(sorted(named))} but no train folder: add train/ or "
                "point data.images.path at the folder that holds it"
            )
        return [_Part("", None)], ("val", "test")
    if len(given) < len(named):
        raise DataError(
            f"{tree.title} has two folders for one split among {sorted(named)}: rename one"
        )
    roles, carve = held_out_roles(given)
    _mention_what_is_left_out(tree, set(named))
    parts = [
        _Part(f"{name}/", record_split(split, roles, carve))
        for name, split in sorted(named.items())
    ]
    return parts, carve


def _mention_what_is_left_out(tree: Tree, used: set[str]) -> None:
    others = [name for name in tree.folders() if name not in used]
    outside = [f"{other}/{name}" for other in others for name, _ in FilesBelow(tree, other)]
    outside += tree.loose_images()
    if outside:
        log.warning(
            "%s: %d images outside %s are not used, %s for example",
            *(tree.title, len(outside), ", ".join(sorted(used)), printable(outside[0])),
        )


def _classes(tree: Tree, parts: list[_Part]) -> tuple[tuple[str, ...], bool]:
    """Return the class names, and whether some images lie loose beside the class folders.

    One folder alone is a wrapper (images/), not a class: it tells nothing apart.
    """
    classes = sorted({printable(name) for part in parts for name in tree.folders(part.folder)})
    if len(classes) < 2:
        return (), False
    return tuple(classes), any(tree.loose_images(part.folder) for part in parts)


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
    tree: Tree, parts: list[_Part], classes: tuple[str, ...]
) -> Iterator[Record | Rejected]:
    yield from tree.strays
    seen = len(tree.strays)
    for part in parts:
        images = FilesBelow(tree, part.folder)
        for name, location in images:
            seen += 1
            label = printable(name.split("/", 1)[0]) if classes and "/" in name else None
            yield to_item(
                printable(part.prefix + name), name, location, label=label, split=part.split
            )
        if images.ignored:
            where = f"{tree.title}/{part.folder}" if part.folder else tree.title
            log.info("%s: %d files that are no images ignored", where, images.ignored)
    if not seen:
        raise DataError(
            f"{tree.title} holds no image files: set data.images.path in params.yaml to the "
            "folder or archive that holds the images"
        )
