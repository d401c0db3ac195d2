"""What becomes of every examined image: accepted into which split, or quarantined and why.

One pure function of the table, the parameters and the splits that images are in already. The
order of the rows plays no part.

- A label in data.exclude_labels is out.
- Of images with the same bytes, and of those with the same look, `drop` keeps the first: one
  sharded before, else one the source gave to test, to val, else the first by key. A copy with the
  same bytes goes the way of its first.
- Images of a group form a unit, as do copies and look-alikes where the rule is `one_split`. A
  unit lies in one split: the one that its members are in already, else the one the source gave
  (to test before val before train), else the one that is drawn. Members that the source gave to
  another are quarantined, so that an evaluation set is never changed by what it resembles; so are
  members that the source gave to none where it gave that split in full. Images stay in the split
  that they were sharded in, unless the source now gives them to another.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mae.data import reasons
from mae.data.sharding.candidates import DECIDED, NONE, Candidates
from mae.data.sharding.duplicates import first_near, first_of_each, near_pairs
from mae.data.sharding.units import draw, settle, units_of
from mae.params import DataParams

__all__ = ["DECIDED", "decide"]


def decide(
    table: pa.Table, data: DataParams, carve: tuple[str, ...], previous: Mapping[str, str]
) -> pa.Table:
    """Return a row of DECIDED for each row of `table`, in its order.

    table: key, label, group, split (given by the source, or null), sha256, phash (uint64 or
    null), reason (why it cannot be used, or null) and perhaps detail. Rows without a reason have
    different keys. carve: the splits that the source leaves to be drawn. previous: key -> split
    of the images that are sharded already.
    """
    order = pc.sort_indices(table, [("key", "ascending")]).to_numpy()
    rows = Candidates.read(table.take(order), previous)
    _exclude(rows, data.exclude_labels)
    _mark_copies(rows, data.duplicates.exact)
    pairs = _mark_look_alikes(rows, data.duplicates.near, data.duplicates.near_bits)
    units = units_of(rows, data, pairs)
    settle(rows, units, carve)
    draw(rows, units, data, carve)
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return rows.decided().take(back)


def _exclude(rows: Candidates, excluded: tuple[str, ...]) -> None:
    codes = [code for code, label in enumerate(rows.labels) if label in set(excluded)]
    for row in np.flatnonzero(np.isin(rows.label, codes) & rows.alive).tolist():
        label = rows.labels[rows.label[row]]
        rows.reject(row, reasons.EXCLUDED, f"its label {label!r} is in data.exclude_labels")


def _mark_copies(rows: Candidates, rule: str) -> None:
    first = first_of_each(np.where(rows.alive, rows.content, NONE), rows.rank)
    copies = np.flatnonzero(first != np.arange(len(first)))
    rows.copy_of[copies] = first[copies]
    if rule == "drop":
        for row in copies.tolist():
            other = int(first[row])
            rows.reject(
                row,
                reasons.DUPLICATE,
                f"same bytes as {rows.keys[other]}{_other_label(rows, row, other)}",
            )


def _mark_look_alikes(rows: Candidates, rule: str, bits: int) -> NDArray[np.int64]:
    """Return pairs of rows (E, 2) with the same look, as far as units need them."""
    lead = np.flatnonzero(rows.alive & rows.has_phash & (rows.copy_of < 0))
    # Number the looks by the rank of the first image that has each.
    place = np.empty(len(rows.keys), np.int64)
    place[rows.rank] = np.arange(len(rows.keys))
    lead = lead[np.argsort(place[lead])]
    looks, at, back = np.unique(rows.phash[lead], return_index=True, return_inverse=True)
    by_rank = np.argsort(at)
    renumbered = np.empty(len(looks), np.int64)
    renumbered[by_rank] = np.arange(len(looks))
    heads, look_of = lead[at[by_rank]], renumbered[back]
    pairs = near_pairs(looks[by_rank], bits)
    stays_for = first_near(pairs, len(looks))
    target = heads[np.where(stays_for < 0, np.arange(len(looks)), stays_for)]
    rows.near_to[lead] = np.where(target[look_of] == lead, NONE, target[look_of])
    if rule == "drop":
        _drop_look_alikes(rows)
    same = np.stack([heads[look_of], lead], axis=1)
    return np.concatenate([same, heads[pairs]])


def _drop_look_alikes(rows: Candidates) -> None:
    copied = (rows.copy_of >= 0) & rows.alive
    nearest = rows.near_to.copy()
    nearest[copied] = rows.near_to[rows.copy_of[copied]]
    for row in np.flatnonzero(nearest >= 0).tolist():
        other = int(nearest[row])
        rows.reject(
            row,
            reasons.NEAR_DUPLICATE,
            f"looks like {rows.keys[other]}{_other_label(rows, row, other)}",
        )


def _other_label(rows: Candidates, row: int, other: int) -> str:
    mine, its = rows.label[row], rows.label[other]
    if mine == its or mine < 0 or its < 0:
        return ""
    return f", which is labelled {rows.labels[its]!r} and this {rows.labels[mine]!r}"
