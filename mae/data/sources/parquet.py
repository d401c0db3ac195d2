"""Rows of a Parquet file; images whose bytes are in a column are read when they are asked for."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.sources.files import ByteFile, check_length
from mae.errors import DataError

# A row group is read whole for one image of it, and stays for the next ones.
_GROUPS_KEPT = 2
_MOST_GROUP_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """The bytes in one row of a column. mark: the file's stamp when it was listed."""

    file: ByteFile
    column: str
    group: int
    row: int
    limit: int
    mark: str

    def read(self) -> bytes:
        try:
            values = _group(os.getpid(), self.file, self.mark, self.group, self.column)
        except (OSError, pa.ArrowException) as error:
            detail = f"row group {self.group} of {self.file.name}: {error}"
            raise ImageFault(reasons.UNREADABLE, detail) from None
        content = values[self.row].as_py()
        if content is None:
            raise ImageFault(reasons.MISSING, f"column {self.column!r} is null in its row")
        check_length(len(content), self.limit)
        return content

    def stamp(self) -> str:
        return f"{self.group}-{self.row}-{self.mark}"


@lru_cache(maxsize=_GROUPS_KEPT)
def _group(process: int, file: ByteFile, mark: str, group: int, column: str) -> pa.ChunkedArray:
    with file.open() as opened:
        parquet = pq.ParquetFile(opened)
        nested = pa.types.is_struct(parquet.schema_arrow.field(column).type)
        read = parquet.read_row_group(group, columns=[f"{column}.bytes" if nested else column])
    values = read.column(column)
    return pc.struct_field(values, "bytes") if nested else values


@dataclass(frozen=True)
class ParquetRow:
    """The cells of a row but for the image's, which is where `image` says."""

    number: int
    cells: dict[str, Any]
    image: ParquetCell | None


def parquet_rows(file: ByteFile, title: str, limit: int) -> Iterator[ParquetRow]:
    """Yield the rows in order. limit: the most bytes of an image. Raises DataError where the file
    is damaged or its row groups are too large to read images from."""
    try:
        mark = file.stamp()
        with file.open() as opened:
            parquet = pq.ParquetFile(opened)
            column = _image_column(parquet.schema_arrow, title)
            others = [name for name in parquet.schema_arrow.names if name != column]
            number = 0
            for group in range(parquet.num_row_groups):
                about = parquet.metadata.row_group(group)
                if column is not None and about.total_byte_size > _MOST_GROUP_BYTES:
                    raise DataError(
                        f"{title}: row group {group} has {about.total_byte_size >> 20} MB, all to "
                        "be read for one image: write the file with smaller ones, of 100 rows"
                    )
                cells = parquet.read_row_group(group, columns=others).to_pylist()
                for row in range(about.num_rows):
                    cell = column and ParquetCell(file, column, group, row, limit, mark)
                    yield ParquetRow(number, cells[row] if others else {}, cell or None)
                    number += 1
    except ImageFault as fault:
        raise DataError(f"{title} cannot be read ({fault.detail})") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{title} is no whole Parquet file ({error})") from None


def _image_column(schema: pa.Schema, title: str) -> str | None:
    """Return the column of bytes, alone or in a struct; None where there is none."""
    found = [field.name for field in schema if _holds_bytes(field.type)]
    if len(found) > 1:
        named = [name for name in found if name.lower() in ("image", "img")]
        if len(named) != 1:
            raise DataError(
                f"{title} has bytes in the columns {', '.join(found)}: name one `image`"
            )
        found = named
    return found[0] if found else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def class_names(file: ByteFile, column: str) -> list[str]:
    """Return the names of a column of numbers, as HuggingFace's files say them; [] elsewhere."""
    with file.open() as opened:
        metadata = pq.read_schema(opened).metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (ValueError, KeyError, TypeError):
        return []
