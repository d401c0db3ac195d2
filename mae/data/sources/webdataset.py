"""WebDataset: tar archives in which the members of one key make a sample.

A sample's key is its members' path up to the first dot of the file name; its id is the archive's
name and the key. Taken are its image, .cls (a class by number or name), .json ("label", "split",
"group"; the rest become columns) and .txt (a caption). Numbers of classes are named by the lines
of classes.txt beside the archives, the first naming 0.
"""

import json
import logging
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Location, Record, Rejected, Source
from mae.data.sources.files import Unusable
from mae.data.sources.items import to_item
from mae.data.sources.members import Member
from mae.data.sources.names import (
    TAR_SUFFIXES,
    has_image_suffix,
    inside,
    is_hidden,
    printable,
)
from mae.data.sources.opening import Opening, archive_members, byte_file
from mae.data.sources.parts import Part, find_parts, join, settle_splits, split_named
from mae.data.sources.trees import unsafe
from mae.errors import DataError

log = logging.getLogger(__name__)

_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")
_CLASS, _JSON, _CAPTION = "cls", "json", "txt"


@dataclass
class _Sample:
    """The members of one key, by what follows the first dot of their names."""

    key: str
    members: dict[str, Location] = field(default_factory=dict)


def open_webdataset(path: str, how: Opening) -> Source:
    """Return the samples of the archives at `path`: one, a folder, a pattern, or a::b.

    Archives whose names all speak of a split (train-000.tar) give it to their samples. Raises
    DataError where there is no archive, or none of an archive can be read.
    """
    parts = find_parts(path, TAR_SUFFIXES, how)
    names = _class_names(parts[0], how)
    settled = settle_splits(_items(parts, names, how), path)
    layout = f"WebDataset, {len(parts)} archives; {settled.words}"
    log.info("%s: %s", path, layout)
    return Source(settled.items, layout, classes=names or None, carve=settled.carve)


def _class_names(first: Part, how: Opening) -> tuple[str, ...]:
    file = byte_file(join(posixpath.dirname(first.path), "classes.txt"), how)
    try:
        lines = file.read().decode("utf-8-sig").splitlines()
    except ImageFault:
        return ()
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name} is not UTF-8 text ({error})") from None
    return tuple(line.strip() for line in lines if line.strip())


def _items(parts: list[Part], names: tuple[str, ...], how: Opening) -> Iterator[Record | Rejected]:
    for part in parts:
        members = archive_members(part.path, how, inline=_describes)
        samples: dict[str, list[_Sample]] = {}
        for member in members:
            stray = _take(member, part, samples)
            if stray:
                yield stray
        for repeated in samples.values():
            for sample in repeated:
                item = _item(part, sample, names)
                if item:
                    yield item


def _describes(name: str) -> bool:
    return name.endswith((f".{_CLASS}", f".{_JSON}", f".{_CAPTION}"))


def _take(member: Member, part: Part, samples: dict[str, list[_Sample]]) -> Rejected | None:
    """Put the member with its sample; a second of one name begins another sample of the key."""
    if member.name is None:
        assert isinstance(member.location, Unusable)
        return Rejected(part.name, member.location.reason, member.location.detail)
    name = inside(member.name)
    if name is None:
        if not has_image_suffix(member.name):
            return None
        return Rejected(printable(member.name), reasons.UNSAFE, unsafe(member.name).detail)
    found = _KEY.fullmatch(name)
    if found is None or any(is_hidden(one) for one in name.split("/")):
        return None
    key, kind = found.groups()
    repeated = samples.setdefault(key, [_Sample(key)])
    if kind in repeated[-1].members:
        repeated.append(_Sample(key))
    repeated[-1].members[kind] = member.location
    return None


def _item(part: Part, sample: _Sample, names: tuple[str, ...]) -> Record | Rejected | None:
    identity = printable(f"{part.name}/{sample.key}")
    # Of several images the one with a plain suffix: jpg before depth.png.
    images = sorted(
        (kind.count("."), kind) for kind in sample.members if has_image_suffix(f"image.{kind}")
    )
    if not images:
        if not sample.members.keys() & {_CLASS, _JSON}:
            return None
        held = ", ".join(sorted(sample.members))
        return Rejected(identity, reasons.MISSING, f"the sample has no image, only {held}")
    try:
        known = _read_description(sample, names)
    except ImageFault as fault:
        return Rejected(identity, reasons.BAD_ANNOTATION, fault.detail)
    kind = images[0][1]
    return to_item(
        identity,
        f"image.{kind}",
        sample.members[kind],
        **{"split": part.split, **known},
    )


def _read_description(sample: _Sample, names: tuple[str, ...]) -> dict[str, Any]:
    """Return label, split, group and columns. Raises ImageFault where they make no sense."""
    known: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    if _CAPTION in sample.members:
        columns["caption"] = _text(sample, _CAPTION)
    if _JSON in sample.members:
        columns |= _read_json(sample)
        columns.pop("__key__", None)
        for field_name in ("label", "split", "group"):
            value = columns.pop(field_name, None)
            if value is not None and value != "":
                known[field_name] = value
    if _CLASS in sample.members:
        known["label"] = _text(sample, _CLASS)
    if "label" in known:
        known["label"] = _label(known["label"], names)
    if "group" in known:
        known["group"] = str(known["group"])
    if "split" in known:
        try:
            known["split"] = split_named(str(known["split"]))
        except KeyError:
            raise _bad(f'"split" is {known["split"]!r}, not train, val or test') from None
    return {**known, "columns": columns}


def _read_json(sample: _Sample) -> dict[str, Any]:
    try:
        content = json.loads(_text(sample, _JSON))
    except (ValueError, RecursionError) as error:
        raise _bad(f"its .json is not valid ({error})") from None
    if not isinstance(content, dict):
        raise _bad("its .json holds no object")
    return content


def _text(sample: _Sample, kind: str) -> str:
    try:
        return sample.members[kind].read().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise _bad(f"its .{kind} is not UTF-8 text ({error})") from None


def _label(found: Any, names: tuple[str, ...]) -> str:
    text = str(found)
    if not names or text in names:
        return text
    if text.isascii() and text.isdecimal() and int(text) < len(names):
        return names[int(text)]
    raise _bad(f"its class is {text!r}, and classes.txt has {len(names)} lines")


def _bad(what: str) -> ImageFault:
    return ImageFault(reasons.BAD_ANNOTATION, what)
