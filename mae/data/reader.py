"""Reading a sharded dataset: by position, from any thread or process."""

import json
import os
import threading
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from torch import Tensor

from mae.data.dataset import DatasetInfo, read_dataset_info
from mae.data.decoding.decode import ImageFault, Pixels, decode
from mae.data.manifest import read_index
from mae.data.records import Annotation
from mae.data.sharding.shards import about_key, image_key, shard_name
from mae.errors import DataError

# LMDB refuses to open one file twice in a process, so all readers share its environments, keyed
# by (device, inode): a shard written anew is another file, even under the same name.
_environments: dict[tuple[int, int], lmdb.Environment] = {}
_lock = threading.Lock()


def _forget_environments() -> None:
    """In a forked child: an environment must not be used across a fork, nor block its reopening."""
    global _lock
    _lock = threading.Lock()
    for environment in _environments.values():
        environment.close()
    _environments.clear()


os.register_at_fork(after_in_child=_forget_environments)


def _environment(path: Path) -> lmdb.Environment:
    try:
        found = path.stat()
        key = (found.st_dev, found.st_ino)
        with _lock:
            if key not in _environments:
                # Without lock=False a reader writes a lock file beside the shard. Without
                # read-ahead random reads of a set larger than memory stay small.
                _environments[key] = lmdb.open(
                    str(path), subdir=False, readonly=True, lock=False, readahead=False
                )
            return _environments[key]
    except (OSError, lmdb.Error) as error:
        raise DataError(
            f"the shard {path} cannot be opened ({error}): shard the data again"
        ) from None


class ShardReader:
    """The accepted images of one split.

    ids: int64 (N,), stable hashes of the keys. labels: int64 (N,), index into info.classes, -1
    for none. heights, widths: int64 (N,), of the upright images as stored. shards: int64 (N,),
    the number of the shard file each image lies in. Raises DataError for a split that is not
    there.
    """

    def __init__(self, folder: Path | str, split: str) -> None:
        self.info: DatasetInfo = read_dataset_info(folder)
        self.split = split
        if not self.info.splits.get(split):
            counts = ", ".join(f"{name} {count}" for name, count in self.info.splits.items())
            raise DataError(
                f"{folder} has no {split} images ({self.info.skipped or counts}): "
                "see data.splits in params.yaml"
            )
        table = read_index(self.info.folder, split)
        columns = {name: table[name].to_numpy() for name in table.column_names if name != "key"}
        self.ids: Tensor = torch.tensor(columns["id"])
        self.labels: Tensor = torch.tensor(columns["label"])
        self.heights: Tensor = torch.tensor(columns["height"])
        self.widths: Tensor = torch.tensor(columns["width"])
        self.shards: Tensor = torch.tensor(columns["shard"])
        self._shards = columns["shard"].astype(np.int32)
        self._slots = columns["slot"].astype(np.int64)
        self._checksums = columns["checksum"].astype(np.uint32)
        self._about_checksums = columns["about_checksum"].astype(np.uint32)
        self._proven = np.zeros(len(table), np.bool_)
        self._keys = table["key"]
        self._open: tuple[int, dict[int, lmdb.Environment]] = (os.getpid(), {})

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": (0, {})}

    @cached_property
    def keys(self) -> list[str]:
        """Names of the images: the ids of their records."""
        return self._keys.to_pylist()

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width when all images share them, else None."""
        height, width = int(self.heights[0]), int(self.widths[0])
        same = bool((self.heights == height).all() and (self.widths == width).all())
        return (height, width) if same else None

    def read(self, index: int) -> bytes:
        """Return the image's bytes as stored. Raises DataError when they are not as written."""
        return bytes(self.view(index))

    def view(self, index: int) -> memoryview:
        """Return the image's bytes as `read` does, without copying them: a view of the shard.

        They are checked when this reader first reads them.
        """
        checksum = None if self._proven[index] else int(self._checksums[index])
        content = self._get(index, image_key(int(self._slots[index])), checksum)
        self._proven[index] = True
        return content

    def pixels(self, index: int) -> Pixels:
        """Decode to (H, W, C), uint8 or uint16 by the dataset's bit depth."""
        wanted = self.info.statistics
        try:
            return decode(
                self.read(index),
                wanted.channels,
                wanted.bit_depth,
                bands=wanted.bands,
                depth_range=wanted.depth_range,
            )
        except ImageFault as fault:
            raise DataError(
                f"{self._name(index)} decoded when it was sharded and does not now ({fault}): "
                "has Pillow changed? Shard the data again"
            ) from None

    def annotations(self, index: int) -> list[Annotation]:
        """Return the boxes and masks marked on the image; [] where there are none."""
        key = about_key(int(self._slots[index]))
        content = self._get(index, key, int(self._about_checksums[index]))
        return json.loads(bytes(content))["annotations"] or []

    def _get(self, index: int, key: bytes, checksum: int | None) -> memoryview:
        """A shard is never written to and its environment never closed while the process that
        opened it lives: so the view outlasts the transaction."""
        try:
            with self._environment(int(self._shards[index])).begin(buffers=True) as transaction:
                content = transaction.get(key)
        except lmdb.Error as error:
            raise DataError(f"{self._name(index)} cannot be read ({error}): shard again") from None
        if content is None or (checksum is not None and zlib.crc32(content) != checksum):
            raise DataError(
                f"{self._name(index)} is {'missing' if content is None else 'damaged'}: the shard "
                "does not hold what was written; shard the data again (or `dvc checkout --force`)"
            )
        return content

    def _environment(self, shard: int) -> lmdb.Environment:
        process, opened = self._open
        if process != os.getpid():
            opened = {}
            self._open = (os.getpid(), opened)
        if shard not in opened:
            opened[shard] = _environment(self._path(shard))
        return opened[shard]

    def _path(self, shard: int) -> Path:
        return self.info.folder / self.split / shard_name(shard)

    def _name(self, index: int) -> str:
        return f"image {self._keys[index].as_py()!r} in {self._path(int(self._shards[index]))}"
