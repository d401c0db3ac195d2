"""Which image goes into which shard: new ones into new shards, so that old files never change.

A dataset that grows keeps its shards as they are: only those that hold an image that is gone or
has changed are written anew, without it. What is to be stored and pushed is then only what is new.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mae.data.sharding.shards import shard_name
from mae.data.sharding.splits import SPLITS


@dataclass(frozen=True)
class Stored:
    """One accepted image as it is to lie in a shard.

    key: its id. proof: a hash of all that is stored of it (bytes, form, label, annotations).
    length: bytes it is expected to take.
    """

    key: str
    split: str
    proof: str
    length: int


@dataclass(frozen=True)
class Shard:
    """A shard file and the keys of the images in it, in their order."""

    split: str
    number: int
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.split}/{shard_name(self.number)}"


@dataclass(frozen=True)
class Layout:
    """kept: shards that stay as they are. written: shards to write."""

    kept: tuple[Shard, ...]
    written: tuple[Shard, ...]

    @property
    def shards(self) -> tuple[Shard, ...]:
        return self.kept + self.written


def lay_out(
    wanted: Iterable[Stored], previous: Sequence[Shard], proofs: dict[str, str], limit: int
) -> Layout:
    """Place the `wanted` images, which come sorted by key, beside what the `previous` shards hold.

    proofs: key -> proof of each image in the previous shards. limit: bytes of images in a shard;
    one larger image has a shard of its own. A number once given to a shard is not given again
    while a later one of its split exists.
    """
    by_key = {one.key: one for one in wanted}
    kept, written = [], []
    placed: set[str] = set()
    for shard in previous:
        keys = tuple(key for key in shard.keys if _stays(key, shard.split, by_key, proofs))
        placed.update(keys)
        if keys == shard.keys:
            kept.append(shard)
        elif keys:
            written.append(Shard(shard.split, shard.number, keys))
    for split in SPLITS:
        number = 1 + max((one.number for one in previous if one.split == split), default=-1)
        new = [one for one in by_key.values() if one.split == split and one.key not in placed]
        for keys in _cut(new, limit):
            written.append(Shard(split, number, keys))
            number += 1
    return Layout(tuple(kept), tuple(written))


def _stays(key: str, split: str, wanted: dict[str, Stored], proofs: dict[str, str]) -> bool:
    one = wanted.get(key)
    return one is not None and one.split == split and one.proof == proofs.get(key)


def _cut(images: Iterable[Stored], limit: int) -> Iterable[tuple[str, ...]]:
    keys: list[str] = []
    filled = 0
    for image in images:
        if keys and filled + image.length > limit:
            yield tuple(keys)
            keys, filled = [], 0
        keys.append(image.key)
        filled += image.length
    if keys:
        yield tuple(keys)
