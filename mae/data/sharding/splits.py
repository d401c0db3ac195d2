"""Which split an image belongs to: train, val or test.

The share of a held-out split is a range of the hash of the image's group (or id), so adding
images never moves one, and another share for val never changes what is in test. The seed of the
run plays no part: models of different seeds must be measured on images none of them learned from.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mae.data.records import Record
from mae.hashing import text_id, uniform
from mae.params import SplitParams

SPLITS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)


def split_of(record: Record, shares: SplitParams, carve: tuple[str, ...]) -> str:
    """Return the record's own split, or else the one its group hashes to among `carve`."""
    if record.split is not None:
        return record.split
    ids = name_ids([record.group or record.id])
    return SPLITS[hashed_splits(split_draws(ids), shares, carve)[0]]


def name_ids(names: Sequence[str]) -> NDArray[np.int64]:
    return np.fromiter((text_id(name) for name in names), np.int64, len(names))


def split_draws(ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the draw in [0, 1) that decides the split of each name's id."""
    return uniform(0, "split", 0, torch.from_numpy(ids), 1)[:, 0].numpy()


def hashed_splits(
    draws: NDArray[np.float64], shares: SplitParams, carve: tuple[str, ...]
) -> NDArray[np.int8]:
    """Return positions in SPLITS."""
    splits = np.full(len(draws), TRAIN, np.int8)
    if "val" in carve:
        splits[draws >= 1 - shares.val] = VAL
    if "test" in carve:
        splits[draws < shares.test] = TEST
    return splits


def stratified_splits(
    draws: NDArray[np.float64],
    members: Sequence[Mapping[int, int]],
    fixed: NDArray[np.int64],
    shares: SplitParams,
    carve: tuple[str, ...],
) -> NDArray[np.int8]:
    """Return positions in SPLITS of units, so that every class has its shares.

    Of U units: draws (U,); members: class -> how many images of it the unit has. fixed: int64
    (classes, 3), images of each class that lie in each split already. Units are taken by their
    draws, each into the split where its classes lack most: of a class whose units hold one image
    each, every split has its share of the class to less than one image, unless one has more
    already.
    """
    wanted = _shares(shares, carve)
    to_come = np.zeros(len(fixed), np.int64)
    for unit in members:
        for label, images in unit.items():
            to_come[label] += images
    short = np.outer(to_come + fixed.sum(axis=1), wanted) - fixed
    # What a split has in excess is missing from the others in proportion.
    short = short.clip(min=0)
    total = short.sum(axis=1, keepdims=True)
    lack = (short * (to_come[:, None] / np.where(total > 0, total, 1))).tolist()
    open_splits = [split for split in (TRAIN, VAL, TEST) if wanted[split] > 0]
    splits = np.zeros(len(draws), np.int8)
    for unit in np.argsort(draws, kind="stable").tolist():
        mine = members[unit].items()
        best = max(
            open_splits,
            key=lambda split: sum(images * lack[label][split] for label, images in mine),
        )
        for label, images in mine:
            lack[label][best] -= images
        splits[unit] = best
    return splits


def _shares(shares: SplitParams, carve: tuple[str, ...]) -> NDArray[np.float64]:
    val = shares.val if "val" in carve else 0.0
    test = shares.test if "test" in carve else 0.0
    return np.array([1 - val - test, val, test])
