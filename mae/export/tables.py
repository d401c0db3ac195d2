"""Where embeddings are written as they come: Parquet with keys, or NumPy with keys beside it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mae.errors import ParamsError
from mae.files import replacing_file

_ROW_GROUP = 4096
PROVENANCE_KEY = b"maestro"


class EmbeddingWriter(ABC):
    """Takes vectors float32 (N, D) and their keys, batch by batch."""

    @abstractmethod
    def add(self, keys: list[str], vectors: NDArray[np.float32]) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


@contextmanager
def writer_for(path: Path, dim: int, provenance: dict[str, Any]) -> Iterator[EmbeddingWriter]:
    """Yield the writer that the suffix of `path` asks for; the file appears when all went well.

    Raises ParamsError for a suffix other than .parquet and .npy.
    """
    if path.suffix == ".parquet":
        with replacing_file(path) as temporary:
            yield from _closing(ParquetWriter(temporary, dim, provenance))
    elif path.suffix == ".npy":
        keys = path.with_suffix(".keys.json")
        with replacing_file(keys) as temporary_keys, replacing_file(path) as temporary:
            yield from _closing(NumpyWriter(temporary, temporary_keys, dim))
    else:
        raise ParamsError(f"--out {path} must end in .parquet or .npy")


def _closing(writer: EmbeddingWriter) -> Iterator[EmbeddingWriter]:
    try:
        yield writer
    finally:
        writer.close()


class ParquetWriter(EmbeddingWriter):
    """Columns key (string) and embedding (fixed-size list of float32).

    The schema's metadata tells which model and feature made them, as JSON under `maestro`.
    """

    def __init__(self, path: Path, dim: int, provenance: dict[str, Any]) -> None:
        metadata = {PROVENANCE_KEY: json.dumps(provenance, sort_keys=True)}
        fields = [
            pa.field("key", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False),
        ]
        self._schema = pa.schema(fields, metadata=metadata)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._dim = dim
        self._keys: list[str] = []
        self._vectors: list[NDArray[np.float32]] = []

    def add(self, keys: list[str], vectors: NDArray[np.float32]) -> None:
        self._keys += keys
        self._vectors.append(vectors)
        if len(self._keys) >= _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if not self._keys:
            return
        values = pa.array(np.concatenate(self._vectors).reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(values, self._dim)
        table = pa.table([pa.array(self._keys, pa.string()), lists], schema=self._schema)
        self._writer.write_table(table)
        self._keys, self._vectors = [], []


class NumpyWriter(EmbeddingWriter):
    """float32 (N, D) in one .npy, and a JSON list of the N keys."""

    def __init__(self, path: Path, keys: Path, dim: int) -> None:
        self._file: BinaryIO = path.open("wb")
        self._keys: TextIO = keys.open("w", encoding="utf-8")
        self._dim = dim
        self._rows = 0
        self._write_header()
        self._keys.write("[")

    def _write_header(self) -> None:
        """NumPy leaves room in the header for any N, so it can be written again at the end."""
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._dim)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, keys: list[str], vectors: NDArray[np.float32]) -> None:
        for key in keys:
            self._keys.write(("\n" if self._rows == 0 else ",\n") + json.dumps(key))
            self._rows += 1
        self._file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())

    def close(self) -> None:
        self._keys.write("\n]\n")
        self._keys.close()
        self._write_header()
        self._file.close()
