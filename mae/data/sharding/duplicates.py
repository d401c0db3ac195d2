"""Which images have the same bytes, and which the same look.

Two 64-bit hashes that differ in at most b bits, cut into b + k blocks, agree in at least k of
them. So whoever sorts by every choice of k blocks meets all such pairs among equal neighbours.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

from mae.errors import DataError

_BITS = 64
_AT_ONCE = 1 << 22  # candidates compared at a time
_MOST_PAIRS = 1 << 27  # 1 GiB of them
_SORT_COST = 40  # of sorting one hash, in comparisons of a candidate


def first_of_each(codes: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for every row the row that comes first in `order` among those of the same code.

    codes: int64 (N,), below 0 for rows that belong with nobody. order: a permutation of N rows.
    """
    first = np.arange(len(codes))
    belongs = order[codes[order] >= 0]
    _, places, back = np.unique(codes[belongs], return_index=True, return_inverse=True)
    first[belongs] = belongs[places][back]
    return first


def near_pairs(hashes: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    """Return all pairs i < j of positions whose hashes differ in 1 to `bits` bits, sorted.

    hashes: uint64 (U,), all different. The result is int64 (E, 2). Raises DataError for a set of
    which nearly everything looks like everything else.
    """
    found: list[NDArray[np.int64]] = []
    held, limit = 0, _AT_ONCE
    for left, right in _candidates(hashes, bits):
        near = np.bitwise_count(hashes[left] ^ hashes[right]) <= bits
        low, high = np.minimum(left[near], right[near]), np.maximum(left[near], right[near])
        found.append(low << 32 | high)
        held += len(low)
        if held > limit:
            found = [np.unique(np.concatenate(found))]
            held = len(found[0])
            limit = max(limit, 2 * held)
            if held > _MOST_PAIRS:
                raise DataError(
                    f"more than {_MOST_PAIRS} pairs of images look alike: lower "
                    f"data.duplicates.near_bits, now {bits}"
                )
    pairs = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
    return np.stack([pairs >> 32, pairs & 0xFFFFFFFF], axis=1)


def first_near(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return for each of `count` the first one it is near to that stays, -1 for those that stay.

    Going through 0, 1, ..., each stays unless it is near to one that stayed before it: no two
    that stay are near each other. pairs: as `near_pairs` returns them.
    """
    stays_for = [-1] * count
    for earlier, later in pairs.tolist():
        if stays_for[earlier] < 0 and stays_for[later] < 0:
            stays_for[later] = earlier
    return np.array(stays_for, dtype=np.int64)


def _candidates(
    hashes: NDArray[np.uint64], bits: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield positions (left, right) of hashes that agree in enough blocks, in bounded pieces."""
    if bits == 0 or len(hashes) < 2:
        return
    agreeing = _agreeing_blocks(len(hashes), bits)
    edges = np.linspace(0, _BITS, bits + agreeing + 1).round().astype(int)
    masks = [(1 << int(high)) - (1 << int(low)) for low, high in pairwise(edges)]
    for chosen in combinations(masks, agreeing):
        keys = hashes & np.uint64(sum(chosen))
        order = np.argsort(keys, kind="stable")
        yield from _equal_neighbours(keys[order], order)


def _agreeing_blocks(count: int, bits: int) -> int:
    """Return how many blocks must agree: more take more sorts and leave fewer candidates."""

    def cost(agreeing: int) -> float:
        share = 2.0 ** (-_BITS * agreeing / (bits + agreeing))
        return comb(bits + agreeing, agreeing) * (_SORT_COST + count * share / 2) * count

    return min(range(1, 6), key=cost)


def _equal_neighbours(
    keys: NDArray[np.uint64], order: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield all pairs within each run of equal sorted keys, as positions `order` gives."""
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    ends = np.repeat(np.r_[starts[1:], len(keys)], np.diff(np.r_[starts, len(keys)]))
    # Row r is paired with each row after it in its run: r + 1 ... ends[r] - 1.
    partners = ends - np.arange(len(keys)) - 1
    rows = np.flatnonzero(partners)
    total = np.r_[0, np.cumsum(partners[rows])]
    start = 0
    while start < len(rows):
        # One row alone may exceed the piece, by less than the number of hashes.
        stop = max(start + 1, int(np.searchsorted(total, total[start] + _AT_ONCE, "right")) - 1)
        counts = partners[rows[start:stop]]
        left = np.repeat(rows[start:stop], counts)
        within = np.arange(len(left)) - np.repeat(total[start:stop] - total[start], counts)
        yield order[left], order[left + 1 + within]
        start = stop
