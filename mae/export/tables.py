"""Where results are written: Parquet, CSV, or NumPy with the keys beside it."""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mae.errors import CheckpointError, DataError, ParamsError
from mae.files import replacing_file

KEY, EMBEDDING = "key", "embedding"
PROVENANCE_KEY = b"maestro"

_ROW_GROUP = 4096


def embedding_schema(dim: int, provenance: dict[str, Any]) -> pa.Schema:
    """Columns key (string) and embedding (fixed-size list of float32).

    The schema's metadata tells which model and feature made them, as JSON under `maestro`.
    """
    fields = [
        pa.field(KEY, pa.string(), nullable=False),
        pa.field(EMBEDDING, pa.list_(pa.float32(), dim), nullable=False),
    ]
    return pa.schema(fields, metadata=_metadata(provenance))


def prediction_schema(top: int, provenance: dict[str, Any]) -> pa.Schema:
    """Columns key, class_1, probability_1, class_2, ...: the most probable classes first."""
    fields = [pa.field(KEY, pa.string(), nullable=False)]
    for rank in range(1, top + 1):
        fields.append(pa.field(f"class_{rank}", pa.string(), nullable=False))
        fields.append(pa.field(f"probability_{rank}", pa.float32(), nullable=False))
    return pa.schema(fields, metadata=_metadata(provenance))


def _metadata(provenance: dict[str, Any]) -> dict[bytes, bytes]:
    return {PROVENANCE_KEY: json.dumps(provenance, sort_keys=True).encode()}


class TableWriter(ABC):
    """Takes tables of one schema, one after the other; how they are cut leaves no trace."""

    @abstractmethod
    def add(self, table: pa.Table) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


def check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise ParamsError where `path` is a folder or ends in none of the suffixes."""
    if path.suffix not in suffixes:
        raise ParamsError(f"--out {path} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ParamsError(f"--out {path} is a folder: name a file")


@contextmanager
def writer_for(path: Path, schema: pa.Schema) -> Iterator[TableWriter]:
    """Yield the writer that the suffix of `path` asks for; the file appears when all went well."""
    if path.suffix == ".npy":
        with replacing_file(keys_beside(path)) as keys, replacing_file(path) as temporary:
            yield from _closing(NumpyWriter(temporary, keys, schema))
    else:
        kind = ParquetWriter if path.suffix == ".parquet" else CsvWriter
        with replacing_file(path) as temporary:
            yield from _closing(kind(temporary, schema))


def keys_beside(path: Path) -> Path:
    """Return where the keys of the rows of a .npy are."""
    return path.with_suffix(".keys.json")


def _closing(writer: TableWriter) -> Iterator[TableWriter]:
    try:
        yield writer
    finally:
        writer.close()


class ParquetWriter(TableWriter):
    """Row groups of one length, whatever the length of the tables that come."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._waiting = schema.empty_table()

    def add(self, table: pa.Table) -> None:
        self._waiting = pa.concat_tables([self._waiting, table])
        while len(self._waiting) >= _ROW_GROUP:
            self._write(self._waiting.slice(0, _ROW_GROUP))
            self._waiting = self._waiting.slice(_ROW_GROUP)

    def close(self) -> None:
        if len(self._waiting):
            self._write(self._waiting)
        self._writer.close()

    def _write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows.combine_chunks())


class CsvWriter(TableWriter):
    """A line of column names, then one for each row."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file: TextIO = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(schema.names)

    def add(self, table: pa.Table) -> None:
        # A probability is float32: six digits are all that it has.
        columns = [
            [f"{value:.6g}" for value in column.to_pylist()]
            if pa.types.is_floating(column.type)
            else column.to_pylist()
            for column in table.columns
        ]
        self._rows.writerows(zip(*columns, strict=True))

    def close(self) -> None:
        self._file.close()


class NumpyWriter(TableWriter):
    """Embeddings float32 (N, D) in one .npy, and a JSON list of the N keys."""

    def __init__(self, path: Path, keys: Path, schema: pa.Schema) -> None:
        self._file: BinaryIO = path.open("wb")
        self._keys: TextIO = keys.open("w", encoding="utf-8")
        self._dim = schema.field(EMBEDDING).type.list_size
        self._rows = 0
        self._write_header()
        self._keys.write("[")

    def _write_header(self) -> None:
        """NumPy leaves room in the header for any N, so it can be written again at the end."""
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._dim)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, table: pa.Table) -> None:
        for key in table[KEY].to_pylist():
            self._keys.write(("\n" if self._rows == 0 else ",\n") + json.dumps(key))
            self._rows += 1
        self._file.write(vectors_of(table).astype("<f4", copy=False).tobytes())

    def close(self) -> None:
        self._keys.write("\n]\n")
        self._keys.close()
        self._write_header()
        self._file.close()


# --- embeddings as somebody else reads them ---------------------------------------------------


def vectors_of(table: pa.Table | pa.RecordBatch) -> np.ndarray:
    """Return the column `embedding` as float32 (N, D)."""
    column = table.column(EMBEDDING)
    dim = column.type.list_size
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [chunk.flatten().to_numpy().reshape(-1, dim) for chunk in chunks]
    return np.concatenate(parts) if parts else np.empty((0, dim), np.float32)


def open_embeddings(path: Path) -> tuple[pq.ParquetFile, dict[str, Any]]:
    """Return a table of `mae embed`, to be read in pieces, and what made it.

    Raises DataError where there is none, CheckpointError where it is somebody else's.
    """
    if path.suffix == ".npy":
        raise ParamsError(f"{path} does not say which model made it: embed to a .parquet")
    try:
        table = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: `mae embed` writes it") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is no Parquet file that can be read ({error})") from None
    schema = table.schema_arrow
    made_by = (schema.metadata or {}).get(PROVENANCE_KEY)
    if made_by is None or {KEY, EMBEDDING} - set(schema.names):
        raise CheckpointError(f"{path} was not written by `mae embed`: it holds no embeddings")
    return table, json.loads(made_by)
