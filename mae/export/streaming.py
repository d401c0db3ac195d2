"""Images through a model, whatever their number: decoding ahead of it, results kept as they come.

Threads decode, another runs the model, the caller's writes; queues between them are bounded.
"""

import csv
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from mae.data.loading.parallel import ordered_map
from mae.data.reasons import ImageFault
from mae.data.records import Rejected
from mae.errors import DataError
from mae.export.images import InputImage, View, load_item
from mae.export.listing import Item, Listing
from mae.export.parts import Mark, Part, Parts, kept_parts
from mae.export.tables import writer_for
from mae.files import replacing_file

# Batches that wait for the model, so that it never waits for them.
_AHEAD = 3

# A part is written after so many rows or seconds, whichever comes first: what a kill may cost.
_PART_ROWS, _PART_SECONDS = 4096, 30.0

# Images that cannot be used are told in parts too: so many of them end a batch.
_MOST_REJECTED = 4096


@dataclass(frozen=True)
class Work:
    """What becomes of images.

    columns: a batch (N, C, H, W) -> the columns of its rows after the key. schema: of the rows.
    identity: all that decides on them besides the images, as JSON.
    """

    name: str
    columns: Callable[[NDArray], list[pa.Array]]
    schema: pa.Schema
    identity: dict[str, Any]


@dataclass(frozen=True)
class Streamed:
    """How many images became rows and how many could not, of which so many in an earlier run;
    images per second of this run and the share of its time that the model was computing."""

    images: int
    rejected: int
    rejected_file: Path | None
    resumed: int
    per_second: float
    busy: float


class _Seen(NamedTuple):
    """A listed image, decoded or not usable, with what changes when its bytes do."""

    image: InputImage | Rejected
    stamp: str


class _Batch(NamedTuple):
    keys: list[str]
    images: NDArray | None
    rejected: list[Rejected]
    end: Mark


@dataclass
class _Clock:
    """Seconds that the model computed, from the first image asked for to its last batch."""

    started: float = field(default_factory=time.perf_counter)
    busy: float = 0.0
    ended: float = 0.0

    @property
    def wall(self) -> float:
        return max(self.ended - self.started, 1e-9)


def stream_images(
    listing: Listing, view: View, work: Work, out: Path, *, batch: int, workers: int
) -> Streamed:
    """Write a row for each image to `out`, in the order of the listing.

    What was done is kept in `<out>.partial` until all is, so a run that was killed goes on where
    it was and ends with the same bytes. Images that cannot be used are left out and listed in
    `<out>.rejected.csv`. Raises DataError when none can be used; then `out` is as it was before.
    """
    identity = {**work.identity, "view": asdict(view), "batch": batch, "columns": str(work.schema)}
    with kept_parts(out, identity) as parts:
        if parts.ends:
            with closing(_marks(listing, workers)) as marks:
                parts.keep_what_fits(marks)
        resumed = parts.end.seen
        clock = _Clock()
        with _progress(work.name, listing, resumed) as bar:
            rest = islice(listing, resumed, None)
            decoded = ordered_map(partial(_see, view), rest, workers, ahead=max(batch, 8 * workers))
            batches = _batches(decoded, batch, parts.end)
            results = ordered_map(partial(_run, work, clock), batches, 1, ahead=_AHEAD)
            _keep(_counted(results, bar), parts, work.schema)
        if not parts.rows:
            first = next(one for part in parts for one in part.rejected)
            parts.remove()
            raise DataError(
                f"none of the {parts.rejected} images can be used; {first.id}: {first.detail}"
            )
        rejected_file = _write_out(out, work.schema, parts)
        parts.remove()
    seen = parts.end.seen - resumed
    share = clock.busy / clock.wall
    return Streamed(parts.rows, parts.rejected, rejected_file, resumed, seen / clock.wall, share)


# --- images -----------------------------------------------------------------------------------


def _see(view: View, item: Item) -> _Seen:
    return _Seen(load_item(view, item), _stamp(item))


def _marks(listing: Listing, workers: int) -> Generator[Mark, None, None]:
    """Yield the place behind each image, without reading any."""
    mark = Mark()
    for key, stamp in ordered_map(_named, listing, workers, ahead=64 * workers):
        mark = mark.after(key, stamp)
        yield mark


def _named(item: Item) -> tuple[str, str]:
    return item.id, _stamp(item)


def _stamp(item: Item) -> str:
    if isinstance(item, Rejected):
        return item.reason
    try:
        return item.image.stamp()
    except ImageFault as fault:
        return fault.reason


def _batches(images: Iterable[_Seen], batch: int, start: Mark) -> Iterator[_Batch]:
    """Group images; where one group ends depends on nothing but the listing behind `start`."""
    mark = start
    group: list[InputImage] = []
    rejected: list[Rejected] = []
    for seen in images:
        image = seen.image
        key = image.id if isinstance(image, Rejected) else image.key
        mark = mark.after(key, seen.stamp)
        if isinstance(image, Rejected):
            rejected.append(image)
        else:
            group.append(image)
        if len(group) == batch or len(rejected) == _MOST_REJECTED:
            yield _stacked(group, rejected, mark)
            group, rejected = [], []
    if group or rejected:
        yield _stacked(group, rejected, mark)


def _stacked(group: list[InputImage], rejected: list[Rejected], end: Mark) -> _Batch:
    images = np.stack([image.pixels for image in group]) if group else None
    return _Batch([image.key for image in group], images, rejected, end)


def _progress(name: str, listing: Listing, done: int) -> tqdm:
    """Return a bar whose end comes as soon as a thread has counted the images."""
    bar = tqdm(desc=name, unit=" images", mininterval=0.5, initial=done)

    def count() -> None:
        bar.total = listing.count()

    threading.Thread(target=count, name="mae-count", daemon=True).start()
    return bar


# --- results ----------------------------------------------------------------------------------


def _run(work: Work, clock: _Clock, batch: _Batch) -> Part:
    rows = work.schema.empty_table()
    if batch.images is not None:
        before = time.perf_counter()
        columns = work.columns(batch.images)
        clock.busy += time.perf_counter() - before
        rows = pa.table([pa.array(batch.keys, pa.string()), *columns], schema=work.schema)
    clock.ended = time.perf_counter()
    return Part(rows, batch.rejected, batch.end)


def _counted(results: Iterable[Part], bar: tqdm) -> Iterator[Part]:
    rejected = 0
    for part in results:
        rejected += len(part.rejected)
        if rejected:
            bar.set_postfix(rejected=rejected, refresh=False)
        bar.update(len(part.rows) + len(part.rejected))
        yield part


def _keep(results: Iterable[Part], parts: Parts, schema: pa.Schema) -> None:
    """Write parts; each ends where a batch does, so that a run that goes on groups alike."""
    waiting: list[Part] = []
    written = time.perf_counter()
    for part in results:
        waiting.append(part)
        late = time.perf_counter() - written > _PART_SECONDS
        if late or sum(len(one.rows) + len(one.rejected) for one in waiting) >= _PART_ROWS:
            parts.add(_joined(waiting, schema))
            waiting, written = [], time.perf_counter()
    if waiting:
        parts.add(_joined(waiting, schema))


def _joined(parts: list[Part], schema: pa.Schema) -> Part:
    rows = pa.concat_tables([schema.empty_table(), *(part.rows for part in parts)])
    return Part(rows, [one for part in parts for one in part.rejected], parts[-1].end)


def _write_out(out: Path, schema: pa.Schema, parts: Parts) -> Path | None:
    """Write `out` and the list beside it, or remove the list of an earlier run when all is well."""
    path = out.with_name(f"{out.name}.rejected.csv")
    with writer_for(out, schema) as writer:
        for part in parts:
            writer.add(part.rows.replace_schema_metadata(schema.metadata))
    if not parts.rejected:
        path.unlink(missing_ok=True)
        return None
    with replacing_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(["key", "reason", "detail"])
        for part in parts:
            rows.writerows([one.id, one.reason, one.detail] for one in part.rejected)
    return path
