"""Units of images that belong together, and the split that each unit lies in.

The rules are those of mae/data/decisions.py.
"""

import numpy as np
from numpy.typing import NDArray

from mae.data import reasons
from mae.data.sharding.candidates import NONE, Candidates
from mae.data.sharding.duplicates import first_of_each
from mae.data.sharding.splits import (
    SPLITS,
    TRAIN,
    hashed_splits,
    name_ids,
    split_draws,
    stratified_splits,
)
from mae.params import DataParams


def units_of(rows: Candidates, data: DataParams, near: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the unit of every row, int64 (N,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(rows.keys)
    groups = first_of_each(np.where(rows.alive, rows.group, NONE), rows.rank)
    edges = [np.stack([groups, np.arange(count)], axis=1)]
    # What has the same bytes has the same look, too.
    if "one_split" in (data.duplicates.exact, data.duplicates.near):
        copies = np.flatnonzero(rows.copy_of >= 0)
        edges.append(np.stack([rows.copy_of[copies], copies], axis=1))
    if data.duplicates.near == "one_split":
        edges.append(near)
    left, right = np.concatenate(edges).T
    related = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    return connected_components(related, directed=False)[1].astype(np.int64)


def settle(rows: Candidates, units: NDArray[np.int64], carve: tuple[str, ...]) -> None:
    """Give the units of which a member has a split theirs; quarantine what belongs to two."""
    rows.split = np.where(rows.given >= 0, rows.given, rows.before)
    sharded = _present(units, rows.before, rows.alive)
    # Where members are sharded already they decide, else test comes before val before train.
    given = _present(units, rows.given, rows.alive)
    deciding = np.where(sharded.any(axis=1, keepdims=True), sharded, given)
    target = np.where(
        deciding.any(axis=1), len(SPLITS) - 1 - deciding[:, ::-1].argmax(axis=1), NONE
    )
    wanted = target[units]
    new = rows.alive & (rows.before < 0) & (wanted >= 0)
    free = rows.given < 0
    fits = np.where(free, _is_open(carve)[wanted], rows.given == wanted)
    torn = (sharded.sum(axis=1) > 1)[units]
    rows.split[new & free] = wanted[new & free]
    out = new & (~fits | torn)
    rows.alive[out] = False
    partner = _Partners(rows, units)
    left_to = " or ".join(np.array(SPLITS)[_is_open(carve)])
    for row in np.flatnonzero(out).tolist():
        if torn[row]:
            lie_in = " and ".join(np.array(SPLITS)[sharded[units[row]]])
            why = f"what belongs together here lies in {lie_in} already"
        elif rows.given[row] >= 0:
            why = f"the source gives this one to {SPLITS[rows.given[row]]}"
        else:
            why = f"the source leaves this one to {left_to}"
        rows.reject(row, reasons.STRADDLES, f"{partner.relation(row)}; {why}")


def _present(
    units: NDArray[np.int64], splits: NDArray[np.int8], alive: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which splits each unit has members in, bool (units, 3)."""
    present = np.zeros((int(units.max(initial=-1)) + 1, len(SPLITS)), bool)
    known = alive & (splits >= 0)
    present[units[known], splits[known]] = True
    return present


def _is_open(carve: tuple[str, ...]) -> NDArray[np.bool_]:
    """Return for each split whether images without a split of their own may go there."""
    return np.array([name == SPLITS[TRAIN] or name in carve for name in SPLITS])


class _Partners:
    """Finds an image that stays for one of its unit that does not, by the closest relation."""

    def __init__(self, rows: Candidates, units: NDArray[np.int64]) -> None:
        self._rows, self._units = rows, units
        self._alike: dict[tuple[int, int], int] = {}
        self._grouped: dict[tuple[int, int], int] = {}
        self._any: dict[int, int] = {}
        for row in np.flatnonzero(rows.alive & (rows.split >= 0)).tolist():
            unit = int(units[row])
            self._alike.setdefault((unit, int(rows.content[row])), row)
            self._grouped.setdefault((unit, int(rows.group[row])), row)
            self._any.setdefault(unit, row)

    def relation(self, row: int) -> str:
        rows, unit = self._rows, int(self._units[row])
        alike = self._alike.get((unit, int(rows.content[row])))
        grouped = self._grouped.get((unit, int(rows.group[row])))
        if alike is not None:
            return f"has the same bytes as {self._where(alike)}"
        if grouped is not None and rows.group[row] >= 0:
            group = rows.groups[rows.group[row]]
            return f"is of one group, {group}, with {self._where(grouped)}"
        return f"looks like, directly or by way of others, {self._where(self._any[unit])}"

    def _where(self, row: int) -> str:
        return f"{self._rows.keys[row]}, which is in {SPLITS[self._rows.split[row]]}"


def draw(
    rows: Candidates, units: NDArray[np.int64], data: DataParams, carve: tuple[str, ...]
) -> None:
    """Draw a split for the units that have none.

    A unit draws by the smallest id among its members' groups (or keys): of a lone image or group
    its own. A new member may bring a smaller one, which matters where nothing is sharded yet.
    """
    members = np.flatnonzero(rows.alive & (rows.split < 0))
    if not len(members):
        return
    found, unit = np.unique(units[members], return_inverse=True)
    smallest = np.full(len(found), np.iinfo(np.int64).max)
    np.minimum.at(smallest, unit, _ids(rows, members))
    draws = split_draws(smallest)
    if data.splits.stratify:
        splits = _stratified(rows, members, unit, draws, data, carve)
    else:
        splits = hashed_splits(draws, data.splits, carve)
    rows.split[members] = splits[unit]


def _stratified(
    rows: Candidates,
    members: NDArray[np.int64],
    unit: NDArray[np.int64],
    draws: NDArray[np.float64],
    data: DataParams,
    carve: tuple[str, ...],
) -> NDArray[np.int8]:
    """Images without a label count as a class of their own, number 0."""
    label = rows.label + 1
    contents: list[dict[int, int]] = [{} for _ in draws]
    for one, number in zip(unit.tolist(), label[members].tolist(), strict=True):
        contents[one][number] = contents[one].get(number, 0) + 1
    settled = np.flatnonzero(rows.alive & (rows.split >= 0))
    settled = settled[_is_open(carve)[rows.split[settled]]]
    fixed = np.zeros((len(rows.labels) + 1, len(SPLITS)), np.int64)
    np.add.at(fixed, (label[settled], rows.split[settled]), 1)
    return stratified_splits(draws, contents, fixed, data.splits, carve)


def _ids(rows: Candidates, members: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the id of the group, or of the key, of each of `members`."""
    by_group = name_ids(rows.groups)
    group = rows.group[members]
    alone = members[group < 0]
    ids = np.empty(len(members), np.int64)
    ids[group >= 0] = by_group[group[group >= 0]]
    ids[group < 0] = name_ids([rows.keys[row] for row in alone.tolist()])
    return ids
