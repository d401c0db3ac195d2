"""Shares by hash and by class."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae.data.records import Inline, Record
from mae.data.sharding.splits import (
    SPLITS,
    hashed_splits,
    name_ids,
    split_draws,
    split_of,
    stratified_splits,
)
from mae.params import SplitParams

BOTH = ("val", "test")


def shares(val: float, test: float) -> SplitParams:
    return SplitParams(val=val, test=test, stratify=False)


def record(name: str, group: str | None = None, split: str | None = None) -> Record:
    return Record(name, Inline(b""), group=group, split=split)


def test_known_names_fall_where_they_always_fell() -> None:
    """A change here would move images between train and test of everybody's data."""
    names = [f"images/{number:03d}.png" for number in range(12)]
    found = "".join(split_of(record(name), shares(0.1, 0.2), BOTH)[:2] for name in names)
    assert found == "vatrtrtetetrtrvatrtrtrte"


def test_shares_of_many_names() -> None:
    names = [f"{number}.png" for number in range(20_000)]
    splits = hashed_splits(split_draws(name_ids(names)), shares(0.1, 0.2), BOTH)
    counts = np.bincount(splits, minlength=3) / len(names)
    assert counts == pytest.approx([0.7, 0.1, 0.2], abs=0.01)


def test_vectorised_is_one_by_one() -> None:
    names = [f"{number}.png" for number in range(500)]
    for carve in (BOTH, ("val",), ("test",), ()):
        splits = hashed_splits(split_draws(name_ids(names)), shares(0.2, 0.3), carve)
        alone = [split_of(record(name), shares(0.2, 0.3), carve) for name in names]
        assert [SPLITS[split] for split in splits] == alone
        assert set(alone) == {"train", *carve}


def test_own_split_and_group_come_first() -> None:
    assert split_of(record("a", split="val"), shares(0.0, 0.9), BOTH) == "val"
    of_group = {split_of(record(str(n), group="g"), shares(0.3, 0.3), BOTH) for n in range(50)}
    assert len(of_group) == 1


def test_another_share_for_val_leaves_test_alone() -> None:
    draws = split_draws(name_ids([f"{number}.png" for number in range(2000)]))
    narrow, wide = (hashed_splits(draws, shares(val, 0.2), BOTH) for val in (0.1, 0.3))
    assert np.array_equal(narrow == 2, wide == 2)
    assert (wide[narrow == 1] == 1).all()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    val=st.floats(0, 0.4),
    test=st.floats(0, 0.4),
    carve=st.sampled_from([BOTH, ("val",), ("test",), ()]),
)
def test_every_class_has_its_shares_to_less_than_one_image(
    sizes: list[int], val: float, test: float, carve: tuple[str, ...]
) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    draws = split_draws(name_ids([f"{number}" for number in range(len(labels))]))
    splits = stratified_splits(
        draws,
        [{label: 1} for label in labels],
        np.zeros((len(sizes), 3), np.int64),
        shares(val, test),
        carve,
    )
    wanted = {"val": val if "val" in carve else 0, "test": test if "test" in carve else 0}
    wanted["train"] = 1 - wanted["val"] - wanted["test"]
    counts = Counter(zip(labels, splits.tolist(), strict=True))
    for label, size in enumerate(sizes):
        for number, name in enumerate(SPLITS):
            assert abs(counts[label, number] - wanted[name] * size) < 1 + 1e-9


def test_what_is_fixed_counts() -> None:
    fixed = np.array([[0, 0, 30]])
    draws = np.linspace(0, 0.99, 70)
    splits = stratified_splits(draws, [{0: 1}] * 70, fixed, shares(0.1, 0.2), BOTH)
    assert np.bincount(splits, minlength=3).tolist() == [61, 9, 0]


def test_units_of_several_classes_come_close() -> None:
    random = np.random.default_rng(0)
    members = [dict(Counter(random.integers(0, 5, 6).tolist())) for _ in range(300)]
    splits = stratified_splits(
        random.random(300), members, np.zeros((5, 3), np.int64), shares(0.1, 0.2), BOTH
    )
    counts = np.zeros((5, 3))
    for unit, split in zip(members, splits, strict=True):
        for label, images in unit.items():
            counts[label, split] += images
    assert counts / counts.sum(axis=1, keepdims=True) == pytest.approx(
        np.tile([0.7, 0.1, 0.2], (5, 1)), abs=0.02
    )
