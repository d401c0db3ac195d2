"""The images that splits are decided for, as columns: what is known of them and what becomes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mae.data.sharding.splits import SPLITS

DECIDED = pa.schema(
    [
        pa.field("accepted", pa.bool_(), nullable=False),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("split", pa.string()),
        ("duplicate_of", pa.string()),
        ("near_duplicate_of", pa.string()),
    ]
)
NONE = -1


@dataclass
class Candidates:
    """Columns of N rows sorted by key; positions stand for rows, -1 for none.

    label, group, content: int64 codes. given, before, split: int8, positions in SPLITS, of what
    the source gave, what the image is in already and what was decided. rank: int64 permutation,
    the order in which images are kept. alive: still to be accepted.
    """

    keys: list[str]
    labels: list[str]
    label: NDArray[np.int64]
    group: NDArray[np.int64]
    groups: list[str]
    content: NDArray[np.int64]
    phash: NDArray[np.uint64]
    has_phash: NDArray[np.bool_]
    given: NDArray[np.int8]
    before: NDArray[np.int8]
    rank: NDArray[np.int64]
    alive: NDArray[np.bool_]
    split: NDArray[np.int8]
    copy_of: NDArray[np.int64]
    near_to: NDArray[np.int64]
    reason: dict[int, str] = field(default_factory=dict)
    detail: dict[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, table: pa.Table, previous: Mapping[str, str]) -> "Candidates":
        keys = table["key"].to_pylist()
        count = len(keys)
        label, labels = _codes(table["label"])
        group, groups = _codes(table["group"])
        given = _split_codes(table["split"].to_pylist())
        before = _split_codes([previous.get(key) for key in keys])
        # What the source now gives elsewhere is sharded anew, as if it came in.
        before[(given >= 0) & (given != before)] = NONE
        fault = table["reason"].to_pylist()
        detail = table["detail"].to_pylist() if "detail" in table.column_names else []
        return cls(
            keys=keys,
            labels=labels.to_pylist(),
            label=label,
            group=group,
            groups=groups.to_pylist(),
            content=_codes(table["sha256"])[0],
            phash=pc.fill_null(table["phash"], 0).to_numpy().astype(np.uint64),
            has_phash=pc.is_valid(table["phash"]).to_numpy().astype(bool),
            given=given,
            before=before,
            # Sorted by the last first: sharded before, then test, val, train and none, then key.
            rank=np.lexsort((np.arange(count), -given, before < 0)),
            alive=np.array([one is None for one in fault], dtype=bool),
            split=np.full(count, NONE, np.int8),
            copy_of=np.full(count, NONE),
            near_to=np.full(count, NONE),
            reason={row: one for row, one in enumerate(fault) if one is not None},
            detail={row: one for row, one in enumerate(detail) if one is not None},
        )

    def reject(self, row: int, reason: str, detail: str) -> None:
        self.alive[row] = False
        self.reason[row], self.detail[row] = reason, detail

    def decided(self) -> pa.Table:
        positions = range(len(self.keys))
        names = np.array([*SPLITS, None], dtype=object)
        split = np.where(self.alive, self.split, NONE)
        columns = {
            "accepted": self.alive,
            "reason": [self.reason.get(row) for row in positions],
            "detail": [self.detail.get(row) for row in positions],
            "split": names[split],
            "duplicate_of": self._keys_of(self.copy_of),
            "near_duplicate_of": self._keys_of(self.near_to),
        }
        return pa.table([columns[name] for name in DECIDED.names], schema=DECIDED)

    def _keys_of(self, rows: NDArray[np.int64]) -> list[str | None]:
        return [self.keys[row] if row >= 0 else None for row in rows.tolist()]


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    """Return a number for every text, -1 for null and for no text, and the texts."""
    texts = column.cast(pa.large_string())
    texts = pc.if_else(pc.equal(texts, ""), None, texts)
    encoded = pa.chunked_array(texts.chunks, pa.large_string()).combine_chunks().dictionary_encode()
    codes = pc.fill_null(encoded.indices, NONE).to_numpy().astype(np.int64)
    return codes, encoded.dictionary


def _split_codes(names: list[str | None]) -> NDArray[np.int8]:
    numbers = {name: number for number, name in enumerate(SPLITS)}
    return np.array([NONE if name is None else numbers[name] for name in names], dtype=np.int8)
