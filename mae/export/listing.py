"""What a folder, archive or sharded dataset holds, in the order of the keys."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mae.data.dataset import read_dataset_info
from mae.data.reader import ShardReader
from mae.data.records import Location, Record, Rejected
from mae.data.sources.files import LocalFile, byte_limit
from mae.data.sources.items import to_item
from mae.data.sources.names import archive_stem, printable
from mae.data.sources.opening import Opening, open_tree
from mae.data.sources.trees import FilesBelow, nowhere
from mae.errors import DataError

Item = Record | Rejected

# What makes a folder a sharded dataset.
_DATASET = "dataset.json"


class Wanted(Protocol):
    """What kind of image a model takes; views say it."""

    @property
    def channels(self) -> int: ...
    @property
    def bit_depth(self) -> int: ...
    @property
    def max_pixels(self) -> int: ...


@dataclass(frozen=True)
class Listing(Iterable[Item]):
    """Images that can be listed again and again, always in the same order.

    count: how many there are, by listing them. find: where the image of a key is; its `read`
    raises ImageFault where there is none.
    """

    items: Callable[[], Iterator[Item]]
    count: Callable[[], int]
    find: Callable[[str], Location]

    def __iter__(self) -> Iterator[Item]:
        return self.items()


def list_images(path: Path | str, wanted: Wanted, split: str | None = None) -> Listing:
    """List the images in a folder to any depth, a zip or tar, or a sharded dataset; or one image.

    split: of a sharded dataset, which alone has any; None for all of it. Raises DataError where
    there is nothing of the kind, or where a dataset's images are of another kind than `wanted`.
    """
    local = Path(path)
    if (local / _DATASET).is_file():
        return _shards(local, wanted, split)
    if split is not None:
        raise DataError(f"{path} is no sharded dataset, so it has no split {split}")
    limit = byte_limit(wanted.max_pixels)
    if local.is_file() and not archive_stem(local.name):
        return _one_file(local, limit)
    return _tree(str(path), limit)


def _one_file(path: Path, limit: int) -> Listing:
    location = LocalFile(str(path), limit)
    item = to_item(printable(path.name), path.name, location)
    return Listing(lambda: iter([item]), lambda: 1, lambda key: location)


def _tree(path: str, limit: int) -> Listing:
    tree = open_tree(path, Opening(limit, "give a folder, zip or tar of images"))

    def items() -> Iterator[Item]:
        yield from tree.strays
        seen = len(tree.strays)
        for name, location in FilesBelow(tree):
            seen += 1
            yield to_item(printable(name), name, location)
        if not seen:
            raise DataError(f"{path} holds no image files")

    def count() -> int:
        return len(tree.strays) + sum(1 for _ in FilesBelow(tree))

    return Listing(items, count, tree.find)


# --- sharded datasets -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stored:
    """An image in a shard."""

    reader: ShardReader
    index: int

    def read(self) -> bytes:
        return self.reader.read(self.index)

    def stamp(self) -> str:
        return f"{self.reader.info.fingerprint}-{self.reader.split}-{self.index}"


def _shards(folder: Path, wanted: Wanted, split: str | None) -> Listing:
    info = read_dataset_info(folder)
    found = info.statistics
    if (found.channels, found.bit_depth) != (wanted.channels, wanted.bit_depth):
        raise DataError(
            f"the model takes {wanted.channels} channel(s) of {wanted.bit_depth} bits and the "
            f"images in {folder} have {found.channels} of {found.bit_depth}: shard them with the "
            "model's channels and bit depth, or give the folder they come from"
        )
    splits = [split] if split else [name for name, count in info.splits.items() if count]
    readers = [ShardReader(folder, name) for name in splits]
    if not readers:
        raise DataError(f"{folder} has no images ({info.skipped or 'all were left out'})")

    def items() -> Iterator[Item]:
        return _in_order(readers)

    def find(key: str) -> Location:
        for reader in readers:
            if key in reader.keys:
                return _Stored(reader, reader.keys.index(key))
        return nowhere(str(folder), key)

    return Listing(items, lambda: sum(len(reader) for reader in readers), find)


def _in_order(readers: list[ShardReader]) -> Iterator[Item]:
    places = [(reader, index) for reader in readers for index in range(len(reader))]
    for reader, index in sorted(places, key=lambda place: place[0].keys[place[1]]):
        yield Record(reader.keys[index], _Stored(reader, index))
