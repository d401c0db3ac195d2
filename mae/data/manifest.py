"""manifest.parquet, a row for every input seen, and index.parquet, where the accepted ones lie."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mae.hashing import text_id

MANIFEST = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("accepted", pa.bool_(), nullable=False),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("group", pa.string()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("channels", pa.int64()),
        ("bit_depth", pa.int64()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("mean", pa.float64()),
        ("std", pa.float64()),
        ("annotations", pa.int64()),
        ("annotations_dropped", pa.int64()),
        ("position", pa.int64()),
        ("shard", pa.int64()),
        ("checksum", pa.int64()),
        ("about_checksum", pa.int64()),
    ]
)
INDEX = pa.schema(
    [
        ("split", pa.string()),
        ("position", pa.int64()),
        ("key", pa.string()),
        ("id", pa.int64()),
        ("label", pa.int64()),
        ("shard", pa.int64()),
        ("length", pa.int64()),
        ("checksum", pa.int64()),
        ("about_checksum", pa.int64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
    ]
)
_ROWS_AT_ONCE = 20_000


class TableWriter:
    """Writes rows to a Parquet file as they come, a group of rows at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


def write_index(manifest: Path, index: Path, classes: tuple[str, ...]) -> None:
    """Derive index.parquet from the accepted rows of a manifest, in their order."""
    numbers = {name: number for number, name in enumerate(classes)}
    with pq.ParquetWriter(index, INDEX, compression="zstd") as writer:
        for rows in _accepted(manifest):
            keys = rows["key"].to_pylist()
            columns = {
                **{name: rows[name] for name in INDEX.names if name in rows.schema.names},
                "id": pa.array([text_id(key) for key in keys], pa.int64()),
                "label": pa.array(
                    [numbers.get(label, -1) for label in rows["label"].to_pylist()], pa.int64()
                ),
                "length": rows["bytes"],
            }
            writer.write_table(pa.table([columns[name] for name in INDEX.names], schema=INDEX))


def _accepted(manifest: Path) -> Iterator[pa.RecordBatch]:
    for rows in pq.ParquetFile(manifest).iter_batches(_ROWS_AT_ONCE):
        yield rows.filter(pc.field("accepted")) if rows.num_rows else rows


def read_index(folder: Path, split: str) -> pa.Table:
    """Return the index rows of one split, in the order of their positions."""
    return pq.read_table(folder / "index.parquet", filters=[("split", "=", split)])


def read_manifest(folder: Path) -> pa.Table:
    return pq.read_table(folder / "manifest.parquet")
