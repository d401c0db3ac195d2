"""Writing the shards of a layout, side by side; one that is finished is never written twice."""

import errno
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from mae.data.annotations import keep_sound
from mae.data.manifest import PLACE
from mae.data.reasons import ImageFault
from mae.data.records import Record
from mae.data.sharding.layout import Shard
from mae.data.sharding.shards import ShardWriter, about, stored_bytes
from mae.data.sharding.stored import Stored, stored_form, stored_shape
from mae.data.sharding.workers import Workers
from mae.errors import DataError
from mae.files import replacing_file
from mae.params import DataParams

PLACES = pa.schema([("key", pa.string()), *PLACE])


# What encoding leaves of the pixels' bytes, roughly: shards are filled by expectation.
_EXPECTED_SHARE = {"jpeg": 0.2, "webp": 0.15, "png": 0.7}
_HEADERS = 4096


def expected_bytes(length: int, height: int, width: int, described: int, data: DataParams) -> int:
    """Return about what an image of `length` bytes as found will take in a shard."""
    if data.store.form == "encoded":
        length = int(_pixel_bytes(height, width, data) * _EXPECTED_SHARE[data.store.codec])
    elif data.store.form == "raw":
        length = _pixel_bytes(height, width, data)
    return stored_bytes(length) + stored_bytes(described)


def largest_bytes(length: int, height: int, width: int, described: int, data: DataParams) -> int:
    """Return what an image will not exceed in a shard, however badly it compresses."""
    if data.store.form != "found":
        length = _pixel_bytes(height, width, data)
    return stored_bytes(length + _HEADERS) + stored_bytes(described)


def _pixel_bytes(height: int, width: int, data: DataParams) -> int:
    height, width = stored_shape(height, width, data.store.short_side)
    return height * width * data.channels * data.bit_depth // 8


@dataclass(frozen=True)
class ShardTask:
    """A shard to write to `path`, which names its content.

    facts: sha256 of the bytes as found, upright height and width of each record. capacity: see
    ShardWriter.
    """

    shard: Shard
    records: tuple[Record, ...]
    facts: tuple[tuple[str, int, int], ...]
    capacity: int
    data: DataParams
    path: Path

    @property
    def places(self) -> Path:
        return self.path.with_suffix(".parquet")


def task_path(workspace: Path, shard: Shard, proofs: Sequence[str], capacity: int) -> Path:
    """Return where in the workspace a shard lies that holds just this."""
    content = hashlib.sha256(json.dumps([shard.name, capacity, *proofs]).encode()).hexdigest()
    return workspace / f"shard-{content[:32]}.mdb"


def write_shards(tasks: Sequence[ShardTask], workers: Workers) -> pa.Table:
    """Write the shards that are not there yet; return where each image lies (PLACES)."""
    todo = [task for task in tasks if not (task.path.exists() and task.places.exists())]
    images = sum(len(task.records) for task in tasks)
    left = sum(len(task.records) for task in todo)
    with tqdm(
        total=images, initial=images - left, desc="write", unit="image", disable=None
    ) as progress:
        for written in workers.run_all(_write_shard, todo):
            progress.update(written)
    tables = [pq.read_table(task.places, schema=PLACES) for task in tasks]
    return pa.concat_tables(tables) if tables else PLACES.empty_table()


def _write_shard(task: ShardTask) -> int:
    try:
        rows = _write(task)
        with replacing_file(task.places) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=PLACES), temporary)
    except (OSError, lmdb.Error) as error:
        full = isinstance(error, lmdb.DiskError) or getattr(error, "errno", 0) == errno.ENOSPC
        advice = "free some space" if full else "see to it"
        raise DataError(
            f"the shard {task.shard.name} could not be written to {task.path.parent} ({error}): "
            f"{advice} and run again; the shards that are finished are kept"
        ) from None
    return len(rows)


def _write(task: ShardTask) -> list[dict[str, object]]:
    rows = []
    with ShardWriter(task.path, task.capacity) as writer:
        for record, facts in zip(task.records, task.facts, strict=True):
            stored, description = _stored(record, *facts, task.data)
            rows.append(
                {
                    "key": record.id,
                    "shard": task.shard.number,
                    "stored_bytes": len(stored.content),
                    "stored_height": stored.height,
                    "stored_width": stored.width,
                    **asdict(writer.put(stored.content, description)),
                }
            )
    return rows


def _stored(
    record: Record, sha256: str, height: int, width: int, data: DataParams
) -> tuple[Stored, bytes]:
    try:
        content = record.image.read()
        marked = record.read_annotations()
        if marked is not None:
            marked = keep_sound(marked, height, width, record.drawn_on)
        if hashlib.sha256(content).hexdigest() == sha256:
            stored = stored_form(content, height, width, data)
            return stored, about(record.id, record.label, marked)
    except ImageFault:
        pass
    raise DataError(
        f"{record.id} changed while its source was read: run again when nothing writes there"
    )
