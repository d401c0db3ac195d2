"""A source -> a sharded dataset: list, examine, decide, lay out, write.

The dataset that stands in the folder already is built upon when it was made with the same
parameters: its shards stay, images that are new come into new ones. Work in progress lies beside
the folder, in `.<name>.partial`, and is found again by a run that follows a kill.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mae.data import reasons
from mae.data.dataset import DatasetInfo, describe_dataset, read_dataset_info
from mae.data.manifest import MANIFEST, PLACE
from mae.data.records import Record, Rejected, Source
from mae.data.sharding.assembly import Previous, code_of, recipe_of, replace_dataset, workspace_of
from mae.data.sharding.decisions import decide
from mae.data.sharding.layout import Layout, Stored, lay_out
from mae.data.sharding.probing import probe_all
from mae.data.sharding.removals import Removals
from mae.data.sharding.storing import (
    ShardTask,
    expected_bytes,
    largest_bytes,
    task_path,
    write_shards,
)
from mae.data.sharding.summary import skipped_info, summarise
from mae.data.sharding.workers import PROCESSES, Workers
from mae.data.sources import Dataset, open_source
from mae.params import DataParams, ExecutorParams

log = logging.getLogger(__name__)

_MEGABYTE = 1 << 20
_NOTHING = Removals()
_REMOVED = "named in data/removals.txt"


def shard_dataset(
    dataset: Dataset,
    data: DataParams,
    seed: int,
    folder: Path,
    removals: Removals = _NOTHING,
    workers: int | None = None,
    executor: ExecutorParams = PROCESSES,
) -> DatasetInfo:
    """Bring `folder` up to date with the source that `data` names and return what is in it.

    The result takes its place only when it is whole. Its bytes do not depend on the
    `executor` and the number of its `workers` (one for each core by default), on interruptions,
    or on the order in which the source lists its images. Raises DataError when the source is
    missing, empty, or holds no usable training image, and when the disk is full; what was
    finished is then kept.
    """
    if dataset == "scenes":  # their annotations are drawn on the images as they are
        data = data.model_copy(update={"store": data.store.model_copy(update={"form": "found"})})
    embedded = getattr(data, dataset).source == "digits"
    recipe, code = recipe_of(data, seed if embedded else None), code_of()
    with workspace_of(folder) as workspace:
        source = open_source(dataset, data, seed, workspace / "spool")
        tasks: list[ShardTask] = []
        if source is None:
            info = skipped_info(dataset, data, recipe, code)
            manifest, layout = MANIFEST.empty_table(), Layout((), ())
        else:
            previous = Previous.read(folder, recipe, code)
            with Workers(executor, workers or os.cpu_count() or 1, workspace) as crew:
                job = _Job(source, data, recipe + code, previous, workspace, crew)
                manifest, layout, tasks = job.run(removals)
            info = summarise(dataset, source, data, recipe, code, manifest)
        replace_dataset(folder, workspace, info, manifest, layout, tasks)
    info = read_dataset_info(folder)
    log.info("%s: %s", folder, describe_dataset(info))
    return info


class _Job:
    """One run over one source. Its tables have a row for each record, sorted by id."""

    def __init__(
        self,
        source: Source,
        data: DataParams,
        made_by: str,
        previous: Previous,
        workspace: Path,
        workers: Workers,
    ) -> None:
        self._source = source
        self._data = data
        self._made_by = made_by
        self._previous = previous
        self._workspace = workspace
        self._workers = workers

    def run(self, removals: Removals) -> tuple[pa.Table, Layout, list[ShardTask]]:
        """Return the manifest, the layout it describes, and the shards that were written."""
        records, rejected = _listed(self._source, removals)
        probed = probe_all(
            records,
            self._data,
            self._made_by,
            self._previous.facts,
            self._workspace,
            self._workers,
        )
        rows = self._decided(records, _without_removed(probed, removals))
        layout = self._laid_out(rows)
        tasks = list(self._tasks(layout, records, rows))
        written = write_shards(tasks, self._workers)
        places = pa.concat_tables([self._previous.places(layout.kept), written])
        found = pc.index_in(rows["key"], places["key"])
        rows = _with_columns(rows, {name: places[name].take(found) for name in PLACE.names})
        gone = _gone(self._previous.manifest, rows, rejected)
        return _manifest(rows, [*rejected, *gone]), layout, tasks

    def _decided(self, records: Sequence[Record], probed: pa.Table) -> pa.Table:
        about = {
            "label": pa.array([record.label for record in records], pa.string()),
            "group": pa.array([record.group for record in records], pa.string()),
            "split": pa.array([record.split for record in records], pa.string()),
            "columns": pa.array([_json(record) for record in records], pa.string()),
        }
        rows = _with_columns(probed, about)
        decided = decide(rows, self._data, self._source.carve, self._previous.splits)
        return _with_columns(rows, {name: decided[name] for name in decided.column_names})

    def _laid_out(self, rows: pa.Table) -> Layout:
        accepted = rows.filter(rows["accepted"])
        names = ["key", "split", "proof", "bytes", "height", "width", "described"]
        columns = zip(*(accepted[name].to_pylist() for name in names), strict=True)
        wanted = [
            Stored(key, split, proof, expected_bytes(length, height, width, described, self._data))
            for key, split, proof, length, height, width, described in columns
        ]
        limit = self._data.shard_mb * _MEGABYTE
        return lay_out(wanted, self._previous.shards, self._previous.proofs, limit)

    def _tasks(
        self, layout: Layout, records: Sequence[Record], rows: pa.Table
    ) -> Iterator[ShardTask]:
        wanted = rows.select(["proof", "sha256", "height", "width", "bytes", "described"])
        row_of = {record.id: row for row, record in enumerate(records)}
        for shard in layout.written:
            numbers = [row_of[key] for key in shard.keys]
            part = wanted.take(numbers).to_pydict()
            proofs = part.pop("proof")
            sizes = (part[name] for name in ("bytes", "height", "width", "described"))
            capacity = sum(
                largest_bytes(length, height, width, described, self._data)
                for length, height, width, described in zip(*sizes, strict=True)
            )
            yield ShardTask(
                shard=shard,
                records=tuple(records[number] for number in numbers),
                facts=tuple(zip(part["sha256"], part["height"], part["width"], strict=True)),
                capacity=capacity,
                data=self._data,
                path=task_path(self._workspace, shard, proofs, capacity),
            )


def _listed(source: Source, removals: Removals) -> tuple[list[Record], list[Rejected]]:
    """Return the records sorted by id, and the inputs that never become one."""
    records: list[Record] = []
    rejected: list[Rejected] = []
    for item in source.items:
        if item.id in removals.ids:
            rejected.append(Rejected(item.id, reasons.REMOVED, _REMOVED))
        elif isinstance(item, Rejected):
            rejected.append(item)
        else:
            records.append(item)
    records.sort(key=lambda record: record.id)
    unique = []
    for _, same in groupby(records, key=lambda record: record.id):
        first, *others = same
        if others:  # which of them is taken must not depend on the order of the listing
            first, *others = sorted([first, *others], key=lambda record: repr(record.image))
        unique.append(first)
        detail = "another image has the same name"
        rejected += [Rejected(one.id, reasons.DUPLICATE_ID, detail) for one in others]
    return unique, rejected


def _without_removed(probed: pa.Table, removals: Removals) -> pa.Table:
    """Leave nothing known of images whose bytes are to be removed but that they were."""
    if not removals.hashes:
        return probed
    hit = pc.is_in(probed["sha256"], pa.array(sorted(removals.hashes), pa.string()))
    blanked = {
        name: pc.if_else(hit, pa.scalar(None, probed[name].type), probed[name])
        for name in probed.column_names
        if name != "key"
    }
    blanked["reason"] = pc.if_else(hit, reasons.REMOVED, blanked["reason"])
    blanked["detail"] = pc.if_else(hit, _REMOVED, blanked["detail"])
    return _with_columns(probed, blanked)


def _gone(previous: pa.Table, rows: pa.Table, rejected: Sequence[Rejected]) -> list[Rejected]:
    """Return a tombstone for every image that was in the shards and is listed no longer."""
    names = pa.array([one.id for one in rejected], pa.string())
    listed = pa.chunked_array([*rows["key"].chunks, names], pa.string())
    was = pc.or_(previous["accepted"], pc.equal(pc.fill_null(previous["reason"], ""), reasons.GONE))
    missing = previous.filter(pc.and_(was, pc.invert(pc.is_in(previous["key"], listed))))
    detail = "was in the shards, and its source lists it no longer"
    return [Rejected(key, reasons.GONE, detail) for key in missing["key"].to_pylist()]


def _manifest(rows: pa.Table, others: Sequence[Rejected]) -> pa.Table:
    rejected = [
        {"key": one.id, "accepted": False, "reason": one.reason, "detail": one.detail}
        for one in others
    ]
    table = pa.concat_tables(
        [
            rows.select(MANIFEST.names).cast(MANIFEST),
            pa.Table.from_pylist(rejected, schema=MANIFEST),
        ]
    )
    order = pc.sort_indices(table, [("key", "ascending"), ("reason", "ascending")])
    return table.take(order).combine_chunks()


def _with_columns(table: pa.Table, columns: dict[str, Any]) -> pa.Table:
    for name, values in columns.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            table = table.append_column(name, values)
    return table


def _json(record: Record) -> str | None:
    return json.dumps(dict(record.columns), sort_keys=True, default=str) if record.columns else None
