"""Sources that come as several files, of samples or of rows: which files, and their splits."""

import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from mae.data.records import Record, Rejected
from mae.data.sources.files import is_url
from mae.data.sources.names import printable
from mae.data.sources.opening import Opening, open_files
from mae.data.sources.patterns import expand, is_pattern
from mae.data.sources.roles import (
    SPLIT_NAMES,
    held_out_roles,
    record_split,
    say_carve,
    split_in,
)
from mae.data.sources.trees import FilesBelow
from mae.errors import DataError

Item = Record | Rejected


@dataclass(frozen=True)
class Part:
    """One file. name: where it is below what was asked for, without its suffix; split: the one
    that its name speaks of, where the names of all do."""

    path: str
    name: str
    split: str | None = None


def find_parts(path: str, endings: tuple[str, ...], how: Opening) -> list[Part]:
    """Return the files of these endings: the one at `path`, those in a folder, those of a pattern.

    Raises DataError where there is none.
    """
    if is_pattern(path):
        parts = _named(expand(path), endings)
    elif path.lower().endswith(endings) and not os.path.isdir(path):  # noqa: PTH112 (URLs too)
        parts = _named([path], endings)
    else:
        files = FilesBelow(open_files(path, how), "", lambda name: _ends(name, endings))
        root = path.rstrip("/")
        parts = [Part(f"{root}/{name}", _without(name, endings)) for name, _ in files]
    wrong = next((part.path for part in parts if not _ends(part.path, endings)), None)
    if wrong is not None or not parts:
        found = f"{wrong} is no such file" if wrong else "there is none"
        raise DataError(f"{path} should name files of {', '.join(endings)}, {found}: {how.advice}")
    parts = [replace(part, name=printable(part.name)) for part in parts]
    splits = [split_in(part.name) for part in parts]
    if all(splits) and "train" in splits:
        return [replace(part, split=split) for part, split in zip(parts, splits, strict=True)]
    return parts


def _named(paths: list[str], endings: tuple[str, ...]) -> list[Part]:
    """Name files by their last part, or where two share it by all that is not common to all."""
    names = [_without(posixpath.basename(path), endings) for path in paths]
    if len(set(names)) < len(names):
        common = len(posixpath.commonpath([posixpath.dirname(path) for path in paths]))
        names = [_without(path[common:].lstrip("/"), endings) for path in paths]
    return [Part(path, name) for path, name in zip(paths, names, strict=True)]


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return name.lower().endswith(endings)


def _without(name: str, endings: tuple[str, ...]) -> str:
    ending = max((one for one in endings if name.lower().endswith(one)), key=len, default="")
    return name[: len(name) - len(ending)]


def join(folder: str, name: str) -> str:
    """Return a path or URL that a file in `folder` speaks of."""
    return name if is_url(name) else posixpath.join(folder, name)


def split_named(text: str) -> str:
    """Return the split of this name. Raises KeyError where it is none."""
    return SPLIT_NAMES[text.strip().lower()]


@dataclass(frozen=True)
class Settled:
    """Items with their final splits, the splits to carve, and both in words."""

    items: Iterator[Item]
    carve: tuple[str, ...]
    words: str


def settle_splits(items: Iterable[Item], title: str) -> Settled:
    """Give the items, whose splits are as their source says, the splits they will have.

    Raises DataError where every image is held out, or there is none.
    """
    known = list(items)
    splits = {item.split for item in known if isinstance(item, Record)}
    given = {split for split in splits if split}
    if not known:
        raise DataError(f"{title} lists no images")
    if given and "train" not in given and None not in splits:
        raise DataError(f"{title} has {', '.join(sorted(given))} but no train")
    roles, carve = held_out_roles(given)
    said = ", ".join(f"{split} is {roles[split]}" for split in sorted(given)) or "no splits"
    return Settled(_with_roles(known, roles, carve), carve, said + say_carve(carve))


def _with_roles(known: list[Item], roles: dict[str, str], carve: tuple[str, ...]) -> Iterator[Item]:
    for item in known:
        if isinstance(item, Record) and item.split is not None:
            item = replace(item, split=record_split(item.split, roles, carve))
        yield item
