"""manifest.parquet, a row for every input seen, and index.parquet, where the accepted ones lie."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mae.data.sharding.examine import FACTS
from mae.hashing import text_id

# Where an accepted image lies and in which form.
PLACE = pa.schema(
    [
        ("shard", pa.int64()),
        ("slot", pa.int64()),
        ("stored_bytes", pa.int64()),
        ("stored_height", pa.int64()),
        ("stored_width", pa.int64()),
        ("checksum", pa.int64()),
        ("about_checksum", pa.int64()),
    ]
)
MANIFEST = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("accepted", pa.bool_(), nullable=False),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("group", pa.string()),
        *FACTS,
        ("categories", pa.list_(pa.string())),
        ("duplicate_of", pa.string()),
        ("near_duplicate_of", pa.string()),
        ("columns", pa.string()),
        ("proof", pa.string()),
        *PLACE,
    ]
)
INDEX = pa.schema(
    [
        ("split", pa.string()),
        ("key", pa.string()),
        ("id", pa.int64()),
        ("label", pa.int64()),
        ("shard", pa.int64()),
        ("slot", pa.int64()),
        ("length", pa.int64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("checksum", pa.int64()),
        ("about_checksum", pa.int64()),
    ]
)
_ROWS_AT_ONCE = 100_000


def write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", row_group_size=_ROWS_AT_ONCE)


def index_of(manifest: pa.Table, classes: tuple[str, ...]) -> pa.Table:
    """Derive the index from a manifest sorted by key: its accepted rows, split by split.

    The order depends on the names of the images alone, not on the shards they came to lie in: a
    model trained on a set that grew is the model trained on the set made in one go.
    """
    rows = manifest.filter(manifest["accepted"])
    rows = rows.take(pc.sort_indices(rows, [("split", "ascending"), ("key", "ascending")]))
    columns = {name: rows[name] for name in INDEX.names if name in rows.column_names} | {
        "id": pa.array([text_id(key) for key in rows["key"].to_pylist()], pa.int64()),
        "label": pc.fill_null(
            pc.index_in(rows["label"].cast(pa.string()), pa.array(classes, pa.string())), -1
        ).cast(pa.int64()),
        "length": rows["stored_bytes"],
        "height": rows["stored_height"],
        "width": rows["stored_width"],
    }
    return pa.table([columns[name] for name in INDEX.names], schema=INDEX)


def read_index(folder: Path, split: str) -> pa.Table:
    """Return the index rows of one split, sorted by key."""
    return pq.read_table(folder / "index.parquet", filters=[("split", "=", split)])


def read_manifest(folder: Path) -> pa.Table:
    return pq.read_table(folder / "manifest.parquet")
