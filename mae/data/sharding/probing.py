"""Examining all images of a source, side by side, in pieces that survive a kill.

The records are cut into chunks; what is found out about a chunk is one Parquet file in the
workspace, named by a hash of all that could change it. A run that was killed finds its finished
chunks there and does the others.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from mae.data.annotations import keep_sound
from mae.data.reasons import ImageFault
from mae.data.records import Inline, Record
from mae.data.sharding.examine import FACTS, examine, facts_row
from mae.data.sharding.shards import about
from mae.data.sharding.workers import Workers
from mae.files import replacing_file
from mae.params import DataParams

_CHUNK = 256

PROBED = pa.schema(
    [
        ("key", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        *FACTS,
        ("categories", pa.list_(pa.string())),
        ("proof", pa.string()),
        ("described", pa.int64()),
    ]
)


@dataclass(frozen=True)
class _Chunk:
    """records: sorted by id. previous: a manifest made with the same `data`, or None."""

    records: tuple[Record, ...]
    data: DataParams
    previous: Path | None
    path: Path


def probe_all(
    records: Sequence[Record],
    data: DataParams,
    made_by: str,
    previous: Path | None,
    workspace: Path,
    workers: Workers,
) -> pa.Table:
    """Examine every record and return a row (PROBED) for each, in their order.

    reason and detail are set for the records that cannot be used; proof is a hash of all that
    will be stored of the others and described the length of what is stored beside the image.
    made_by: names the parameters and the code. An image of the `previous` manifest whose bytes
    are the same is not decoded again.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    chunks = [
        _Chunk(part, data, previous, workspace / f"probe-{_name(part, made_by)}.parquet")
        for part in _cut(records)
    ]
    todo = [chunk for chunk in chunks if not chunk.path.exists()]
    done = len(records) - sum(len(chunk.records) for chunk in todo)
    with tqdm(
        total=len(records), initial=done, desc="examine", unit="image", disable=None
    ) as progress:
        for examined in workers.run_all(_examine_chunk, todo):
            progress.update(examined)
    tables = [pq.read_table(chunk.path, schema=PROBED) for chunk in chunks]
    return pa.concat_tables(tables) if tables else PROBED.empty_table()


def _cut(records: Sequence[Record]) -> Iterator[tuple[Record, ...]]:
    for start in range(0, len(records), _CHUNK):
        yield tuple(records[start : start + _CHUNK])


def _name(records: Sequence[Record], made_by: str) -> str:
    content = hashlib.sha256(made_by.encode())
    for record in records:
        content.update(json.dumps([record.id, _stamp(record), record.drawn_on]).encode())
        if isinstance(record.annotations, list):
            content.update(json.dumps(record.annotations, sort_keys=True).encode())
    return content.hexdigest()[:32]


def _stamp(record: Record) -> str:
    try:
        return record.image.stamp()
    except ImageFault as fault:
        return fault.reason


def _examine_chunk(chunk: _Chunk) -> int:
    known = _known(chunk)
    rows = [_row(record, known.get(record.id), chunk.data) for record in chunk.records]
    with replacing_file(chunk.path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=PROBED), temporary)
    return len(rows)


def _known(chunk: _Chunk) -> dict[str, dict[str, Any]]:
    """Return the facts of this chunk's images in the previous manifest, which is sorted by key."""
    if chunk.previous is None:
        return {}
    keys = chunk.records[0].id, chunk.records[-1].id
    table = pq.read_table(
        chunk.previous,
        columns=["key", *FACTS.names],
        filters=[("key", ">=", keys[0]), ("key", "<=", keys[1]), ("sha256", "!=", "")],
    )
    return {row.pop("key"): row for row in table.to_pylist()}


def _row(record: Record, known: dict[str, Any] | None, data: DataParams) -> dict[str, Any]:
    row: dict[str, Any] = {"key": record.id}
    try:
        content = record.image.read()
        sha256 = hashlib.sha256(content).hexdigest()
        if known is None or known["sha256"] != sha256:
            plain = replace(record, image=Inline(content), annotations=None)
            known = facts_row(examine(plain, data))
        marked = record.read_annotations()
        sound = marked
        if marked is not None:
            sound = keep_sound(marked, known["height"], known["width"], record.drawn_on)
            row["categories"] = sorted(one["category"] for one in sound)
            known |= {"annotations": len(sound), "annotations_dropped": len(marked) - len(sound)}
    except ImageFault as fault:
        return row | {"reason": fault.reason, "detail": fault.detail}
    description = about(record.id, record.label, sound)
    proof = hashlib.sha256(sha256.encode() + description).hexdigest()
    return row | known | {"proof": proof, "described": len(description)}
