"""A table that lists images, CSV or Parquet, or several.

Columns: `path` (or `image`, `file_name`, `filename`), and where there are such `label`, `split`,
`group` and `id`; the rest are kept. Paths are relative to the table's folder, absolute, or URLs.
In Parquet a column may hold the images' bytes themselves, plain or as {bytes, path}.
"""

import csv
import io
import logging
import math
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mae.data.reasons import ImageFault
from mae.data.records import Location, Record, Rejected, Source
from mae.data.sources.files import ByteFile
from mae.data.sources.items import to_item
from mae.data.sources.names import TABLE_SUFFIXES, printable, suffix
from mae.data.sources.opening import Opening, byte_file
from mae.data.sources.parquet import class_names, parquet_rows
from mae.data.sources.parts import Part, find_parts, join, settle_splits, split_named
from mae.errors import DataError

log = logging.getLogger(__name__)

_PATHS = ("path", "image", "file_name", "filename")
_KNOWN = ("label", "split", "group", "id")
_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class _Row:
    """where: for messages. cells: by column. number: from 0. image: its bytes, if in the row."""

    where: str
    number: int
    cells: dict[str, Any]
    image: Location | None = None


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table mean something here: what they mean -> what they are called."""

    names: dict[str, str]

    @classmethod
    def among(cls, found: list[str]) -> "_Columns":
        lower = {name.strip().lower(): name for name in reversed(found) if name}
        names = {meaning: lower[meaning] for meaning in _KNOWN if meaning in lower}
        path = next((lower[name] for name in _PATHS if name in lower), None)
        return cls(names if path is None else {**names, "path": path})

    def text(self, row: _Row, meaning: str) -> str | None:
        """Return a cell as text, None where it is empty or there is no such column."""
        value = row.cells.get(self.names.get(meaning, ""))
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # what other tools make of whole numbers beside empty cells
        return str(value).strip() or None

    def rest(self, row: _Row) -> dict[str, Any]:
        taken = set(self.names.values())
        return {name: value for name, value in row.cells.items() if name and name not in taken}


def open_table(path: str, how: Opening) -> Source:
    """Return the images that the tables at `path` list: one, a folder's, a pattern's, or a::b.

    Tables whose names all speak of a split (train.csv) give it to rows that say none. Raises
    DataError, with the line, where a column is missing, a row has no image or a split is unknown.
    """
    parts = find_parts(path, TABLE_SUFFIXES, how)
    classes: dict[str, None] = {}
    settled = settle_splits(_items(parts, how, classes), path)
    layout = f"table, {len(parts)} files; {settled.words}"
    log.info("%s: %s", path, layout)
    return Source(settled.items, layout, classes=tuple(classes) or None, carve=settled.carve)


def _items(
    parts: list[Part], how: Opening, classes: dict[str, None]
) -> Iterator[Record | Rejected]:
    """Yield the rows' images; names of classes that a table states are put into `classes`."""
    for part in parts:
        file = byte_file(part.path, how)
        columns: _Columns | None = None
        names: list[str] = []
        read = _parquet_rows if suffix(part.path) == ".parquet" else _csv_rows
        for row in read(file, part, how):
            if columns is None:
                columns = _Columns.among(list(row.cells))
                _check_columns(columns, row, part)
                if "label" in columns.names and suffix(part.path) == ".parquet":
                    names = class_names(file, columns.names["label"])
                    classes.update(dict.fromkeys(names))
            yield _item(row, columns, names, part, how)


def _check_columns(columns: _Columns, row: _Row, part: Part) -> None:
    if "path" not in columns.names and row.image is None:
        raise DataError(
            f"{part.path} has no column `path` (or `image`) among {', '.join(map(str, row.cells))}"
        )


def _item(
    row: _Row, columns: _Columns, names: list[str], part: Part, how: Opening
) -> Record | Rejected:
    path = columns.text(row, "path")
    location = row.image
    if location is None:
        if path is None:
            raise DataError(f"{row.where} names no image: its {columns.names['path']!r} is empty")
        location = byte_file(join(posixpath.dirname(part.path), path), how)
    identity = columns.text(row, "id") or _identity(path, row, part)
    return to_item(
        printable(identity),
        path or "",
        location,
        label=_label(columns.text(row, "label"), names, row),
        split=_split(columns.text(row, "split"), row) or part.split,
        group=columns.text(row, "group"),
        columns=columns.rest(row),
    )


def _identity(path: str | None, row: _Row, part: Part) -> str:
    """The path as the table says it, below the table's folder if it is; else the row's number."""
    if path is None:
        return f"{part.name}/{row.number:08d}"
    folder = posixpath.dirname(part.path)
    return path.removeprefix(f"{folder}/") if folder else path


def _label(text: str | None, names: list[str], row: _Row) -> str | None:
    if not names or text is None or text == "-1":  # HuggingFace's number for no label
        return None if names else text
    if not text.isdecimal() or int(text) >= len(names):
        raise DataError(f"{row.where}: label {text} is none of the table's {len(names)} classes")
    return names[int(text)]


def _split(text: str | None, row: _Row) -> str | None:
    if text is None:
        return None
    try:
        return split_named(text)
    except KeyError:
        raise DataError(f"{row.where}: split {text!r} is none of train, val and test") from None


def _csv_rows(file: ByteFile, part: Part, how: Opening) -> Iterator[_Row]:
    try:
        file.length()
        with (
            file.open() as opened,
            io.TextIOWrapper(opened, encoding="utf-8-sig", newline="") as text,
        ):
            header = text.readline()
            text.seek(0)
            # The separator that the header has most of, a comma where it has none.
            delimiter = max(_DELIMITERS, key=header.count)
            rows = csv.DictReader(text, delimiter=delimiter, strict=True)
            for number, cells in enumerate(rows):
                where = f"{part.path} line {rows.line_num}"
                if None in cells or None in cells.values():
                    wanted = len(rows.fieldnames or ())
                    raise DataError(f"{where} has other than the {wanted} cells of the header")
                yield _Row(where, number, cells)
    except ImageFault as fault:
        raise DataError(f"{part.path} cannot be read ({fault.detail}): {how.advice}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{part.path} is no CSV table in UTF-8 ({error})") from None


def _parquet_rows(file: ByteFile, part: Part, how: Opening) -> Iterator[_Row]:
    for row in parquet_rows(file, part.path, how.limit):
        yield _Row(f"{part.path} row {row.number}", row.number, row.cells, row.image)
