"""Writing records to single-file LMDB shards whose bytes depend on the records alone.

A shard holds two entries per record: `<position>.image`, the image's bytes as found, and
`<position>.json`, its key, label and annotations. Positions count within the split, so keys
arrive sorted. What makes equal input give equal bytes: appended keys, transactions cut by
content, a map size by formula, and a compacting copy, which drops free pages.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import lmdb

from mae.data.records import Record

_PAGE = 4096
_IN_LEAF = 1900  # larger values get pages of their own
_TRANSACTION_BYTES = 16 << 20


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.mdb"


def image_key(position: int) -> bytes:
    return b"%010d.image" % position


def about_key(position: int) -> bytes:
    return b"%010d.json" % position


def about(record: Record) -> bytes:
    """Return the record's name, label and annotations as canonical JSON."""
    content = {"key": record.id, "label": record.label, "annotations": record.annotations}
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Written:
    """Where a record went and what will prove that it is still the same."""

    position: int
    shard: int
    checksum: int
    about_checksum: int


class SplitWriter:
    """Writes the records of one split into shards of at most `shard_bytes`."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder = folder
        self._limit = shard_bytes
        self._shard: _OpenShard | None = None
        self._number = -1
        self._position = 0

    def put(self, image: bytes, description: bytes) -> Written:
        needed = _stored_bytes(image) + _stored_bytes(description)
        if self._shard is None or self._shard.used + needed > self._limit:
            self.close()
            self._number += 1
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / shard_name(self._number)
            self._shard = _OpenShard(path, max(self._limit, needed))
        self._shard.put(image_key(self._position), image)
        self._shard.put(about_key(self._position), description)
        self._position += 1
        return Written(self._position - 1, self._number, zlib.crc32(image), zlib.crc32(description))

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None


class _OpenShard:
    def __init__(self, path: Path, capacity: int) -> None:
        self._path = path
        self._raw = path.with_suffix(".raw")
        self._environment = lmdb.open(
            str(self._raw),
            subdir=False,
            lock=False,
            sync=False,  # a shard counts only once its whole folder is flushed and renamed
            map_size=2 * capacity + (16 << 20),
        )
        self._transaction = self._environment.begin(write=True)
        self._uncommitted = 0
        self.used = 2 * _PAGE

    def put(self, key: bytes, value: bytes) -> None:
        if self._uncommitted > _TRANSACTION_BYTES:
            self._transaction.commit()
            self._transaction = self._environment.begin(write=True)
            self._uncommitted = 0
        self._transaction.put(key, value, append=True)
        self._uncommitted += _stored_bytes(value)
        self.used += _stored_bytes(value)

    def close(self) -> None:
        self._transaction.commit()
        self._environment.copy(str(self._path), compact=True)
        self._environment.close()
        self._raw.unlink()


def _stored_bytes(value: bytes) -> int:
    """Return at least what a value takes on disk, with its key and its share of inner pages."""
    size = len(value) + 64
    if size <= _IN_LEAF:
        return size + size // 4
    return -(-size // _PAGE) * _PAGE + 64
