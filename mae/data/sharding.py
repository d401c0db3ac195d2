"""A source -> a sharded dataset: every input is examined, and accepted or quarantined."""

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mae.data import reasons
from mae.data.annotations import keep_sound
from mae.data.dataset import FORMAT, DatasetInfo, read_dataset_info, write_dataset_info
from mae.data.decode import ImageFault, ImageHeader, decode, probe
from mae.data.manifest import INDEX, MANIFEST, TableWriter, write_index
from mae.data.parallel import ordered_map
from mae.data.records import Record, Rejected, Source
from mae.data.shards import SplitWriter, about
from mae.data.sources import Dataset, open_source
from mae.data.splits import SPLITS, split_of
from mae.data.statistics import PixelSums
from mae.errors import DataError
from mae.files import replacing_folder
from mae.hashing import text_id
from mae.params import DataParams
from mae.pixels import PixelStatistics

log = logging.getLogger(__name__)

_MEGABYTE = 1 << 20
_AHEAD_PER_WORKER = 8
_SAY_EVERY = 100_000


@dataclass(frozen=True)
class _Examined:
    """A record that decodes: its header, pixel sums and the hash of its bytes."""

    record: Record
    header: ImageHeader
    sums: PixelSums
    sha256: str
    dropped: int


def shard_dataset(dataset: Dataset, data: DataParams, seed: int, folder: Path) -> DatasetInfo:
    """Write `folder` anew from the source that `data` names and return what is in it.

    The folder takes its place only when it is whole. Raises DataError when the source is
    missing, empty, or holds no training image that can be used.
    """
    source = open_source(dataset, data, seed)
    _remove_leftovers(folder)
    with replacing_folder(folder) as temporary:
        if source is None:
            info = _write_skipped(dataset, data, temporary)
        else:
            info = _Sharder(dataset, data, source, temporary).run()
        write_dataset_info(info, temporary)
    log.info("%s: %s", folder, describe(info))
    return read_dataset_info(folder)


def describe(info: DatasetInfo) -> str:
    if info.skipped:
        return info.skipped
    splits = ", ".join(f"{split} {count}" for split, count in info.splits.items())
    return (
        f"{info.accepted} of {info.seen} images accepted, {info.quarantined} quarantined "
        f"(reasons in manifest.parquet); {splits}"
    )


class _Sharder:
    def __init__(self, dataset: str, data: DataParams, source: Source, folder: Path) -> None:
        self._dataset = dataset
        self._data = data
        self._source = source
        self._folder = folder
        shard_bytes = data.shard_mb * _MEGABYTE
        self._writers = {split: SplitWriter(folder / split, shard_bytes) for split in SPLITS}
        self._ids: set[int] = set()
        self._reasons: Counter[str] = Counter()
        self._splits: Counter[str] = Counter()
        self._seen = 0
        self._sums = PixelSums.none(data.channels)
        self._labels: set[str] = set()
        self._instances: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self._content = hashlib.sha256()

    def run(self) -> DatasetInfo:
        manifest = self._folder / "manifest.parquet"
        with TableWriter(manifest, MANIFEST) as table:
            for found in self._examined():
                table.add(self._row(found))
        for writer in self._writers.values():
            writer.close()
        info = self._info()
        write_index(manifest, self._folder / "index.parquet", info.classes)
        return info

    def _examined(self) -> Iterator[_Examined | Rejected]:
        workers = os.cpu_count() or 1
        items = self._source.items
        data = self._data
        return ordered_map(
            lambda item: item if isinstance(item, Rejected) else examine(item, data),
            *(items, workers, _AHEAD_PER_WORKER * workers),
        )

    def _row(self, found: _Examined | Rejected) -> dict[str, Any]:
        """Take one input in: store it if it is good; return its row of the manifest."""
        self._seen += 1
        if self._seen % _SAY_EVERY == 0:
            log.info("%d inputs seen, %d quarantined", self._seen, self._reasons.total())
        if isinstance(found, _Examined):
            identity = text_id(found.record.id)
            if identity not in self._ids:
                self._ids.add(identity)
                return self._store(found)
            found = Rejected(
                found.record.id, reasons.DUPLICATE_ID, "an image of this name came before"
            )
        self._reasons[found.reason] += 1
        return {
            "key": found.id,
            "accepted": False,
            "reason": found.reason,
            "detail": found.detail,
        }

    def _store(self, found: _Examined) -> dict[str, Any]:
        record, header = found.record, found.header
        split = split_of(record, self._data.splits, self._source.carve)
        description = about(record)
        written = self._writers[split].put(record.image, description)
        self._splits[split] += 1
        if split == "train":
            self._sums += found.sums
        if record.label is not None:
            self._labels.add(record.label)
        self._instances[split].update(one["category"] for one in record.annotations or ())
        line = [split, found.sha256, hashlib.sha256(description).hexdigest()]
        self._content.update(json.dumps(line).encode() + b"\n")
        overall = found.sums.over_channels().statistics(self._data.bit_depth)
        return {
            "key": record.id,
            "accepted": True,
            "split": split,
            "label": record.label,
            "group": record.group,
            **asdict(header),
            "bytes": len(record.image),
            "sha256": found.sha256,
            "mean": overall.mean[0],
            "std": overall.std[0],
            "annotations": None if record.annotations is None else len(record.annotations),
            "annotations_dropped": found.dropped,
            **asdict(written),
        }

    def _info(self) -> DatasetInfo:
        if not self._splits["train"]:
            raise DataError(self._nothing_to_learn_from())
        classes = self._source.classes
        categories = self._source.categories
        met = {name for counts in self._instances.values() for name in counts}
        info = DatasetInfo(
            folder=self._folder,
            dataset=self._dataset,
            layout=self._source.layout,
            classes=tuple(sorted(self._labels)) if classes is None else classes,
            categories=tuple(sorted(met)) if categories is None else categories,
            statistics=self._sums.statistics(self._data.bit_depth),
            fingerprint="",
            splits={split: self._splits[split] for split in SPLITS},
            instances={split: dict(counts) for split, counts in self._instances.items() if counts},
            seen=self._seen,
            accepted=self._splits.total(),
            quarantined=self._reasons.total(),
            limits=_limits(self._data),
        )
        return replace(info, fingerprint=self._fingerprint(info))

    def _nothing_to_learn_from(self) -> str:
        where = f"the source of {self._dataset} ({self._source.layout})"
        if not self._splits.total():
            why = ", ".join(f"{count} {name}" for name, count in self._reasons.most_common())
            return f"{where} has no image that can be used; quarantined: {why or 'none seen'}"
        return f"{where} has no image in train, only in {', '.join(sorted(+self._splits))}"

    def _fingerprint(self, info: DatasetInfo) -> str:
        about_all = [FORMAT, info.statistics.channels, info.statistics.bit_depth]
        names = [list(info.classes), list(info.categories)]
        content = self._content.copy()
        content.update(json.dumps([about_all, names]).encode())
        return content.hexdigest()


def examine(record: Record, data: DataParams) -> _Examined | Rejected:
    """Decode one record in full. Never raises for what the bytes or annotations hold."""
    try:
        header = probe(record.image)
        _check_shape(header, data)
        pixels = decode(record.image, data.channels, data.bit_depth)
        annotations = record.annotations
        if annotations is not None:
            shape = header.height, header.width
            annotations = keep_sound(annotations, *shape, record.drawn_on)
    except ImageFault as fault:
        return Rejected(record.id, fault.reason, fault.detail)
    sha256 = hashlib.sha256(record.image).hexdigest()
    dropped = len(record.annotations or ()) - len(annotations or ())
    kept = replace(record, annotations=annotations)
    return _Examined(kept, header, PixelSums.of(pixels), sha256, dropped)


def _check_shape(header: ImageHeader, data: DataParams) -> None:
    shape = f"{header.height} x {header.width} pixels (height x width)"
    if min(header.height, header.width) < data.min_side:
        raise ImageFault(
            reasons.TOO_SMALL, f"{shape}: a side is below data.min_side {data.min_side}"
        )
    if header.pixels > data.max_pixels:
        raise ImageFault(reasons.TOO_LARGE, f"{shape}: above data.max_pixels {data.max_pixels}")


def _limits(data: DataParams) -> dict[str, int]:
    return {"min_side": data.min_side, "max_pixels": data.max_pixels}


def _write_skipped(dataset: str, data: DataParams, folder: Path) -> DatasetInfo:
    for name, schema in (("manifest", MANIFEST), ("index", INDEX)):
        with TableWriter(folder / f"{name}.parquet", schema):
            pass
    channels = data.channels
    return DatasetInfo(
        folder=folder,
        dataset=dataset,
        layout="none",
        classes=(),
        categories=(),
        statistics=PixelStatistics((0.0,) * channels, (1.0,) * channels, data.bit_depth),
        fingerprint=hashlib.sha256(b"skipped").hexdigest(),
        splits=dict.fromkeys(SPLITS, 0),
        instances={},
        seen=0,
        accepted=0,
        quarantined=0,
        limits=_limits(data),
        skipped=f"data.{dataset}.source is none: there are no {dataset} to work on",
    )


def _remove_leftovers(folder: Path) -> None:
    """Remove the unfinished folders of runs that were killed, which hold much and serve nobody."""
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        process = leftover.name.split(".")[-2]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(leftover, ignore_errors=True)
