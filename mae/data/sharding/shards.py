"""Writing one single-file LMDB shard whose bytes depend on what is in it alone.

A shard holds two entries per image: `<slot>.image`, the image as it is stored, and `<slot>.json`,
its key, label and annotations. What makes equal content give equal bytes: keys appended in order,
transactions cut by content, a map size by formula, and a compacting copy, which drops free pages.
"""

import json
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import lmdb

from mae.data.records import Annotation
from mae.files import flush_to_disk

_PAGE = 4096
_IN_LEAF = 1900  # larger values get pages of their own
_TRANSACTION_BYTES = 16 << 20
_SPARE = 16 << 20


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.mdb"


def image_key(slot: int) -> bytes:
    return b"%010d.image" % slot


def about_key(slot: int) -> bytes:
    return b"%010d.json" % slot


def about(key: str, label: str | None, annotations: list[Annotation] | None) -> bytes:
    """Return an image's name, label and annotations as canonical JSON."""
    content = {"key": key, "label": label, "annotations": annotations}
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def stored_bytes(length: int) -> int:
    """Return at least what a value takes on disk, with its key and its share of inner pages."""
    size = length + 64
    if size <= _IN_LEAF:
        return size + size // 4
    return -(-size // _PAGE) * _PAGE + 64


@dataclass(frozen=True)
class Written:
    """Where an image went and what will prove that it is still the same."""

    slot: int
    checksum: int
    about_checksum: int


class ShardWriter:
    """Writes images to the shard `path`, which appears when the block ends without an error.

    capacity: bytes on disk that the images will not exceed; equal content and capacity give
    equal bytes. Raises lmdb.Error or OSError when the disk is full.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        self._path = path
        mine = uuid.uuid4().hex  # a cluster may give a shard to a second worker meanwhile
        self._raw = path.with_name(f"{path.stem}-{mine}.raw")
        self._copy = path.with_name(f"{path.stem}-{mine}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._environment = lmdb.open(
            str(self._raw),
            subdir=False,
            lock=False,
            sync=False,  # what counts is the copy, which is flushed before it is renamed
            map_size=2 * capacity + _SPARE,
        )
        self._transaction = self._environment.begin(write=True)
        self._uncommitted = 0
        self._slot = 0

    def put(self, image: bytes, description: bytes) -> Written:
        self._put(image_key(self._slot), image)
        self._put(about_key(self._slot), description)
        self._slot += 1
        return Written(self._slot - 1, zlib.crc32(image), zlib.crc32(description))

    def _put(self, key: bytes, value: bytes) -> None:
        if self._uncommitted > _TRANSACTION_BYTES:
            self._transaction.commit()
            self._transaction = self._environment.begin(write=True)
            self._uncommitted = 0
        self._transaction.put(key, value, append=True)
        self._uncommitted += stored_bytes(len(value))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._transaction.commit()
                self._environment.copy(str(self._copy), compact=True)
                flush_to_disk(self._copy)
                self._copy.replace(self._path)
            else:
                self._transaction.abort()
        finally:
            self._environment.close()
            self._raw.unlink(missing_ok=True)
            self._copy.unlink(missing_ok=True)
