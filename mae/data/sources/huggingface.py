"""A dataset of HuggingFace's `datasets` that was saved to disk by save_to_disk."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Record, Rejected, Source
from mae.data.sources.files import check_length
from mae.data.sources.opening import Opening
from mae.data.sources.parts import settle_splits
from mae.data.sources.roles import SPLIT_NAMES
from mae.errors import DataError

log = logging.getLogger(__name__)

_OPEN_DATASETS = 8
_BATCH = 1000
_LABELS = ("label", "labels")


@dataclass(frozen=True, slots=True)
class HuggingFaceRow:
    """The image of one row. folder: of its split, on disk; mark: the dataset's fingerprint."""

    folder: str
    column: str
    row: int
    limit: int
    mark: str

    def read(self) -> bytes:
        found = _dataset(os.getpid(), self.folder, self.column, self.mark)[self.row][self.column]
        content = (found or {}).get("bytes")
        if content is None:
            raise ImageFault(reasons.MISSING, "the row has no image's bytes")
        check_length(len(content), self.limit)
        return content

    def stamp(self) -> str:
        return f"{self.row}-{self.mark}"


@dataclass(frozen=True)
class _Split:
    """One dataset in its folder: the columns that matter, and the split it is."""

    name: str
    split: str | None
    folder: str
    rows: Any
    image: str
    label: str | None

    @property
    def classes(self) -> list[str]:
        return self.rows.features[self.label].names if self.label else []


def open_huggingface(path: str, how: Opening) -> Source:
    """Return the rows of a saved Dataset or DatasetDict; a ClassLabel column names the classes.

    Raises DataError where `datasets` is not installed, nothing is there, or no column holds
    images.
    """
    splits = _splits(path, how)
    classes = tuple(dict.fromkeys(name for split in splits for name in split.classes))
    settled = settle_splits(_items(splits, how.limit), path)
    layout = f"HuggingFace dataset, image column {splits[0].image!r}; {settled.words}"
    log.info("%s: %s", path, layout)
    return Source(settled.items, layout, classes=classes or None, carve=settled.carve)


def _library() -> ModuleType:
    # Read once, when it is imported: nothing here has a reason to ask the hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import datasets
    except ImportError:
        raise DataError(
            "the source `huggingface` needs the package datasets: "
            "pip install maestro-mae[huggingface]"
        ) from None
    return datasets


def _splits(path: str, how: Opening) -> list[_Split]:
    library = _library()
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"the folder {folder.resolve()} does not exist: {how.advice}")
    try:
        found = library.load_from_disk(path)
    except Exception as error:  # whatever a damaged or foreign folder makes it raise
        raise DataError(f"{path} is no dataset saved by save_to_disk ({error})") from None
    if not isinstance(found, Mapping):
        return [_split("all", None, folder, found, path)]
    known = {name: rows for name, rows in found.items() if name.lower() in SPLIT_NAMES}
    if left := sorted(set(found) - set(known)):
        log.warning("%s: the splits %s are not used", path, ", ".join(left))
    if not known:
        raise DataError(f"{path} has the splits {', '.join(sorted(found))}, none of them train")
    return [
        _split(name, SPLIT_NAMES[name.lower()], folder / name, rows, path)
        for name, rows in sorted(known.items())
    ]


def _split(name: str, split: str | None, folder: Path, rows: Any, path: str) -> _Split:
    library = _library()
    images = [key for key, kind in rows.features.items() if isinstance(kind, library.Image)]
    named = [key for key in images if key in ("image", "img")]
    if len(images) != 1 and len(named) != 1:
        held = ", ".join(rows.features)
        raise DataError(f"{path} has {len(images)} image columns among {held}: name one `image`")
    image = images[0] if len(images) == 1 else named[0]
    return _Split(name, split, str(folder), rows, image, _label_column(rows, path))


def _label_column(rows: Any, path: str) -> str | None:
    library = _library()
    found = [key for key, kind in rows.features.items() if isinstance(kind, library.ClassLabel)]
    named = [key for key in found if key in _LABELS]
    if len(found) > 1 and not named:
        log.warning("%s: which of %s is the label? None is taken", path, ", ".join(found))
        return None
    return (named or found or [None])[0]


def _items(splits: list[_Split], limit: int) -> Iterator[Record | Rejected]:
    for split in splits:
        mark = _fingerprint(split.folder)
        described = split.rows.remove_columns([split.image])
        number = 0
        for batch in described.iter(batch_size=_BATCH) if described.column_names else ():
            for cells in _cells(batch):
                yield _record(split, number, cells, mark, limit)
                number += 1
        for row in range(number, len(split.rows)):  # no column but the image
            yield _record(split, row, {}, mark, limit)


def _cells(batch: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


def _record(split: _Split, row: int, cells: dict[str, Any], mark: str, limit: int) -> Record:
    label = cells.pop(split.label, None) if split.label else None
    group = cells.pop("group", None)
    return Record(
        f"{split.name}/{row:08d}",
        HuggingFaceRow(split.folder, split.image, row, limit, mark),
        label=None if label is None or label < 0 else split.classes[label],
        split=split.split,
        group=None if group is None else str(group),
        columns=cells,
    )


def _fingerprint(folder: str) -> str:
    state = json.loads((Path(folder) / "state.json").read_text(encoding="utf-8"))
    return str(state["_fingerprint"])


@lru_cache(maxsize=_OPEN_DATASETS)
def _dataset(process: int, folder: str, column: str, mark: str) -> Any:
    """Return the dataset with its images left as bytes. It is mapped, not read, into memory."""
    library = _library()
    try:
        rows = library.load_from_disk(folder).with_format(None)
        return rows.select_columns([column]).cast_column(column, library.Image(decode=False))
    except Exception as error:
        raise ImageFault(reasons.UNREADABLE, f"{folder} cannot be opened: {error}") from None
