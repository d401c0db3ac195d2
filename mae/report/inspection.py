"""What a sharded dataset looks like: gathered from manifest and shards, told and drawn."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from mae.data.dataset import DatasetInfo
from mae.data.reader import ShardReader
from mae.data.records import Annotation
from mae.data.sharding.splits import SPLITS
from mae.data.validation.bins import ColumnProfile
from mae.data.validation.profile import Profile, open_manifest
from mae.errors import DataError, ParamsError
from mae.hashing import random_bits
from mae.report.data_summary import Fact, dataset_facts

_TILES = 8
_ROWS = 5
_SCENES = 8
_LISTED = 10
PAIRS = 6
_HISTOGRAMS = ("height", "width", "bytes", "mean", "entropy")


@dataclass(frozen=True)
class Tile:
    """An image as stored, (H, W, C) uint8 or uint16, its key, and what is marked on it."""

    pixels: NDArray[Any]
    key: str
    annotations: list[Annotation] = field(default_factory=list)


@dataclass(frozen=True)
class Pair:
    """An image and its copy; `copy` is None where the copy was not kept."""

    first: Tile
    copy: Tile | None
    copy_key: str
    kind: str


@dataclass(frozen=True)
class Inspection:
    """rows: name (a class, or "") -> images. classes: name -> split -> images, or objects: all
    of them, or where they are too many the largest and the smallest; `unlisted` are the others.
    """

    info: DatasetInfo
    profile: Profile
    split: str
    rows: list[tuple[str, list[Tile]]]
    classes: list[tuple[str, dict[str, int]]]
    unlisted: int
    pairs: list[Pair]

    @property
    def histograms(self) -> dict[str, ColumnProfile]:
        return {name: self.profile.columns[name] for name in _HISTOGRAMS}


def inspect_dataset(info: DatasetInfo, out: Path, seed: int) -> list[Fact]:
    """Draw the dataset to the PNG `out`; return the same in words.

    Raises ParamsError when `out` is no .png, DataError when there is nothing to draw.
    """
    if out.suffix.lower() != ".png":
        raise ParamsError(f"--out {out} must end in .png")
    if info.skipped or not info.accepted:
        why = info.skipped or "no image was accepted"
        raise DataError(f"{info.folder} has nothing to look at: {why}")
    from mae.report.inspection_picture import draw_inspection

    found = gather(info, seed)
    draw_inspection(found, out)
    return in_words(found)


def gather(info: DatasetInfo, seed: int) -> Inspection:
    """Profile the manifest and read some images, chosen by a hash of their ids."""
    profile = Profile.of(info)
    split = next(split for split in SPLITS if info.splits.get(split))
    classes, unlisted = _listed(profile)
    return Inspection(
        info=info,
        profile=profile,
        split=split,
        rows=_rows(info, split, [name for name, _ in classes], seed),
        classes=classes,
        unlisted=unlisted,
        pairs=_pairs(info, seed),
    )


def _listed(profile: Profile) -> tuple[list[tuple[str, dict[str, int]]], int]:
    """Return the classes by their size in train, and how many in the middle were left out."""
    counts = {split: profile.images_or_objects(split) for split in SPLITS}
    table = [(name, {split: counts[split][name] for split in SPLITS}) for name in profile.classes]
    table.sort(key=lambda row: (-row[1]["train"], -sum(row[1].values()), row[0]))
    if len(table) <= 2 * _LISTED:
        return table, 0
    return table[:_LISTED] + table[-_LISTED:], len(table) - 2 * _LISTED


def _rows(
    info: DatasetInfo, split: str, names: list[str], seed: int
) -> list[tuple[str, list[Tile]]]:
    reader = ShardReader(info.folder, split)
    order = random_bits(seed, "inspect", 0, reader.ids, 1)[:, 0].argsort()
    if info.dataset == "scenes":
        chosen = order[:_SCENES].tolist()
        return [("", [_tile(reader, position, marked=True) for position in chosen])]
    labels = [name for name in names if name in info.classes]
    if not labels:
        chosen = order[: _TILES * _ROWS].tolist()
        parts = [chosen[start : start + _TILES] for start in range(0, len(chosen), _TILES)]
        return [("", [_tile(reader, position) for position in part]) for part in parts]
    shown = labels if len(labels) <= _LISTED else labels[:_ROWS] + labels[-_ROWS:]
    rows = [(name, _tiles_of(reader, order, info.classes.index(name))) for name in shown]
    return [(name, tiles) for name, tiles in rows if tiles]


def _tiles_of(reader: ShardReader, order: torch.Tensor, label: int) -> list[Tile]:
    chosen = order[reader.labels[order] == label][:_TILES].tolist()
    return [_tile(reader, position) for position in chosen]


def _tile(reader: ShardReader, position: int, marked: bool = False) -> Tile:
    annotations = reader.annotations(position) if marked else []
    return Tile(reader.pixels(position), reader.keys[position], annotations)


def _pairs(info: DatasetInfo, seed: int) -> list[Pair]:
    """Return some images that are alike: of the same bytes and of the same look in turn."""
    with open_manifest(info.folder) as connection:
        rows = connection.execute(
            """
            SELECT copy.key, copy.split, copy.accepted, first.key, first.split,
                copy.duplicate_of IS NULL AS near
            FROM manifest AS copy JOIN manifest AS first
                ON first.key = coalesce(copy.duplicate_of, copy.near_duplicate_of)
            WHERE first.accepted
                AND (copy.accepted OR copy.reason IN ('duplicate', 'near_duplicate'))
            ORDER BY row_number() OVER (PARTITION BY near
                ORDER BY copy.accepted DESC, md5(concat(copy.key, ?)), copy.key), near LIMIT ?""",
            [str(seed), PAIRS],
        ).fetchall()
    readers = {split: ShardReader(info.folder, split) for split in SPLITS if info.splits.get(split)}

    def tile(key: str, split: str) -> Tile:
        return _tile(readers[split], readers[split].keys.index(key))

    return [
        Pair(
            first=tile(first, first_split),
            copy=tile(copy, copy_split) if accepted else None,
            copy_key=copy,
            kind=_kind(near, copy_split if accepted else None, first_split),
        )
        for copy, copy_split, accepted, first, first_split, near in rows
    ]


def _kind(near: bool, copy_split: str | None, first_split: str) -> str:
    kind = "same look" if near else "same bytes"
    if copy_split is None:
        return f"{kind}, one left out"
    return kind if copy_split == first_split else f"{kind}, {first_split} and {copy_split}"


def in_words(found: Inspection) -> list[Fact]:
    """Return the inspection as (what, how much)."""
    profile = found.profile
    facts = dataset_facts(found.info)
    facts += [
        ("Brightness" if name == "mean" else name.capitalize(), _spread(name, column))
        for name, column in found.histograms.items()
    ]
    facts += [(f"Left out: {reason}", f"{count:,}") for reason, count in most(profile.reasons)]
    what = "images" if found.info.classes else "objects"
    for number, (name, counts) in enumerate(found.classes):
        if found.unlisted and number == _LISTED:
            facts.append(("...", f"{found.unlisted:,} more classes"))
        text = ", ".join(f"{split} {count:,}" for split, count in counts.items())
        facts.append((f"  {name}", f"{text} {what}"))
    for name, count in (
        ("Same bytes", profile.totals["duplicates"]),
        ("Same look", profile.totals["near_duplicates"]),
        ("Same bytes in train and held out", profile.totals["leaked"]),
        ("Same look in train and held out", profile.totals["near_leaked"]),
        ("Blank", profile.totals["blank"]),
    ):
        facts.append((name, f"{count:,} accepted images"))
    facts += [
        (f"Pair, {pair.kind}", f"{pair.first.key} and {pair.copy_key}") for pair in found.pairs
    ]
    return facts


def most(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _spread(name: str, column: ColumnProfile) -> str:
    if not column.count:
        return "unknown"
    units = {"height": " pixels", "width": " pixels", "entropy": " bits"}.get(name, "")
    low, middle, high = (brief(x) for x in (column.low, column.quantiles[0.5], column.high))
    return f"{low}{units}" if low == high else f"{low} to {high}, median {middle}{units}"


def brief(value: float | None) -> str:
    """Return a number as short as it is still useful."""
    if value is None:
        return "none"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.3g}"
