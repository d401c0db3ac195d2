"""What becomes of every image: the rules, and what holds whatever the table is."""

import itertools
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae.data import reasons
from mae.data.records import Inline, Record
from mae.data.sharding.decisions import DECIDED, decide
from mae.data.sharding.splits import split_of
from mae.params import DataParams
from tests.data import zoo

BOTH = ("val", "test")
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
Row = dict[str, Any]


def row(key: str, **changes: Any) -> Row:
    return {"key": key, "sha256": f"sha of {key}", **changes}


def table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def params(exact: str = "drop", near: str = "keep", **changes: Any) -> DataParams:
    changes = {"splits": {"val": 0.2, "test": 0.3}} | changes
    return zoo.data_params(duplicates={"exact": exact, "near": near, "near_bits": 2}, **changes)


def decided(
    rows: list[Row],
    data: DataParams,
    carve: tuple[str, ...] = BOTH,
    previous: dict[str, str] | None = None,
) -> dict[str, Row]:
    result = decide(table(rows), data, carve, previous or {})
    assert result.schema == DECIDED
    return {one["key"]: found for one, found in zip(rows, result.to_pylist(), strict=True)}


# --- rules --------------------------------------------------------------------------------------


def test_the_plain_case_is_the_hash_of_each() -> None:
    rows = [row(f"{n}.png", group=f"g{n // 3}" if n % 2 else None) for n in range(300)]
    for carve in (BOTH, ("val",), ()):
        found = decided(rows, params(), carve)
        for one in rows:
            record = Record(one["key"], Inline(b""), group=one["group"])
            assert found[one["key"]]["split"] == split_of(record, params().splits, carve)


def test_faults_pass_through() -> None:
    rows = [row("a"), {"key": "b", "reason": reasons.EMPTY, "detail": "no bytes"}]
    found = decided(rows, params())
    assert found["b"] == {
        **dict.fromkeys(DECIDED.names),
        "accepted": False,
        "reason": reasons.EMPTY,
        "detail": "no bytes",
    }
    assert found["a"]["accepted"]


def test_an_empty_table_gives_an_empty_table() -> None:
    assert decide(table([]), params(), BOTH, {}).num_rows == 0


def test_excluded_labels_are_out_and_stand_for_nobody() -> None:
    rows = [row("a", label="x", sha256="s"), row("b", label="y", sha256="s"), row("c", label="x")]
    found = decided(rows, params(exclude_labels=["x"]))
    assert [found[key]["reason"] for key in "abc"] == [reasons.EXCLUDED, None, reasons.EXCLUDED]
    assert "'x'" in found["a"]["detail"]
    assert found["b"]["duplicate_of"] is None


def test_of_copies_the_first_is_kept_and_named() -> None:
    rows = [
        row(key, sha256="s", label=label) for key, label in (("c", "y"), ("a", "x"), ("b", "x"))
    ]
    found = decided(rows, params())
    assert found["a"]["accepted"]
    assert [found[key]["reason"] for key in "bc"] == [reasons.DUPLICATE] * 2
    assert found["b"]["detail"] == "same bytes as a"
    assert found["c"]["detail"] == "same bytes as a, which is labelled 'x' and this 'y'"
    assert [found[key]["duplicate_of"] for key in "abc"] == [None, "a", "a"]


def test_a_copy_sharded_before_stays_the_first() -> None:
    rows = [row(key, sha256="s") for key in "ab"]
    found = decided(rows, params(), previous={"b": "val"})
    assert found["b"]["accepted"] and found["b"]["split"] == "val"
    assert found["a"]["duplicate_of"] == "b"


def test_of_copies_the_one_given_to_test_is_kept() -> None:
    rows = [row("a", sha256="s", split="train"), row("b", sha256="s", split="test")]
    found = decided(rows, params(), ())
    assert found["b"]["split"] == "test"
    assert found["a"]["reason"] == reasons.DUPLICATE


def test_kept_copies_are_named_and_drawn_each_on_its_own() -> None:
    rows = [row(f"{n}", sha256="s") for n in range(60)]
    found = decided(rows, params(exact="keep"))
    assert all(one["accepted"] for one in found.values())
    assert {one["split"] for one in found.values()} == {"train", "val", "test"}
    assert {found[str(n)]["duplicate_of"] for n in range(1, 60)} == {"0"}


def test_copies_of_one_split_share_it() -> None:
    rows = [row(f"{n}", sha256=f"s{n % 30}") for n in range(90)]
    found = decided(rows, params(exact="one_split"))
    for which in range(30):
        assert len({found[f"{n}"]["split"] for n in range(which, 90, 30)}) == 1
    assert len({one["split"] for one in found.values()}) == 3


@pytest.mark.parametrize("rule", ["keep", "drop", "one_split"])
def test_look_alikes(rule: str) -> None:
    chain = [
        row("a", phash=0b0),
        row("b", phash=0b11),
        row("c", phash=0b1111),
        row("d", phash=None),
    ]
    found = decided([*chain, row("e", phash=0xFFFF << 48)], params(near=rule))
    assert [found[key]["near_duplicate_of"] for key in "abcde"] == [None, "a", None, None, None]
    dropped = [key for key in "abcde" if found[key]["reason"] == reasons.NEAR_DUPLICATE]
    assert dropped == (["b"] if rule == "drop" else [])
    if rule == "drop":
        assert found["b"]["detail"] == "looks like a"
    if rule == "one_split":
        assert len({found[key]["split"] for key in "abc"}) == 1


def test_a_copy_goes_the_way_of_its_first_when_that_looks_like_another() -> None:
    rows = [row("a", phash=1), row("b", sha256="s", phash=3), row("c", sha256="s", phash=3)]
    found = decided(rows, params(exact="keep", near="drop"))
    assert [found[key]["reason"] for key in "abc"] == [None, *[reasons.NEAR_DUPLICATE] * 2]
    assert "looks like a" in found["c"]["detail"]


def test_a_unit_takes_the_split_its_members_are_in() -> None:
    rows = [row(f"{n:02}", group="g") for n in range(20)]
    for split in ("train", "val", "test"):
        found = decided(rows, params(), previous={"07": split})
        assert {one["split"] for one in found.values()} == {split}


def test_train_copies_of_test_images_are_set_aside() -> None:
    rows = [
        row("a", sha256="s", split="train"),
        row("b", sha256="s", split="test"),
        row("c", sha256="s", split="val"),
        row("d", split="train"),
    ]
    found = decided(rows, params(exact="one_split"), ())
    assert [found[key]["reason"] for key in "abcd"] == [
        reasons.STRADDLES,
        None,
        reasons.STRADDLES,
        None,
    ]
    assert found["a"]["detail"] == (
        "has the same bytes as b, which is in test; the source gives this one to train"
    )


def test_an_open_image_never_joins_a_test_set_that_the_source_gave() -> None:
    rows = [row("a", group="g"), row("b", group="g", split="test"), row("c", group="h")]
    found = decided(rows, params(), ("val",))
    assert found["a"]["reason"] == reasons.STRADDLES
    assert found["a"]["detail"] == (
        "is of one group, g, with b, which is in test; the source leaves this one to train or val"
    )
    joined = decided(rows, params(), BOTH)
    assert joined["a"]["split"] == "test"


def test_a_new_image_between_two_splits_is_set_aside_and_nothing_moves() -> None:
    rows = [row("a", phash=0b0), row("b", phash=0b11), row("c", phash=0b1111)]
    found = decided(rows, params(near="one_split"), previous={"a": "train", "c": "test"})
    assert found["a"]["split"] == "train" and found["c"]["split"] == "test"
    assert found["b"]["reason"] == reasons.STRADDLES
    assert "train and test already" in found["b"]["detail"]


def test_the_source_may_move_an_image() -> None:
    found = decided([row("a", split="test")], params(), (), {"a": "train"})
    assert found["a"]["split"] == "test"


def test_stratified_shares_are_exact_in_every_class() -> None:
    rows = [row(f"{n:03}", label=f"c{n % 4}" if n % 5 else None) for n in range(400)]
    data = params(splits={"val": 0.1, "test": 0.2, "stratify": True})
    found = decided(rows, data)
    for label in ("c0", "c1", "c2", "c3", None):
        splits = [found[one["key"]]["split"] for one in rows if one["label"] == label]
        for split, share in (("val", 0.1), ("test", 0.2), ("train", 0.7)):
            assert abs(splits.count(split) - share * len(splits)) < 1


def test_stratified_growth_keeps_everyone_and_the_shares() -> None:
    data = params(splits={"val": 0.1, "test": 0.2, "stratify": True})
    rows = [row(f"{n:03}", label="c") for n in range(100)]
    previous = {key: one["split"] for key, one in decided(rows[::2], data).items()}
    found = decided(rows, data, previous=previous)
    assert all(found[key]["split"] == split for key, split in previous.items())
    splits = [one["split"] for one in found.values()]
    assert [splits.count(name) for name in ("train", "val", "test")] == [70, 10, 20]


# --- whatever the table is ----------------------------------------------------------------------

RULES = st.sampled_from(["keep", "drop", "one_split"])


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Row], DataParams, tuple[str, ...]]:
    """Small tables full of relations."""
    count = draw(st.integers(1, 14))
    given_splits = draw(st.booleans())
    carve = draw(st.sampled_from([BOTH, ("val",), ()])) if given_splits else BOTH
    some = [None, "train", "val", "test"] if given_splits else [None]
    rows = []
    for key in draw(st.permutations([f"{n:02}" for n in range(count)])):
        content = draw(st.integers(0, 12))
        rows.append(
            row(
                key,
                sha256=f"s{content}",
                phash=None if content == 0 else (1 << (content % 7)) - 1,
                group=draw(st.sampled_from([None, None, "g", "h", ""])),
                label=draw(st.sampled_from([None, "x", "y", "z"])),
                split=draw(st.sampled_from(some)),
                reason=draw(st.sampled_from([None] * 9 + [reasons.DAMAGED])),
            )
        )
    data = params(
        draw(RULES),
        draw(RULES),
        exclude_labels=draw(st.sampled_from([[], ["z"]])),
        splits={"val": 0.2, "test": 0.3, "stratify": draw(st.booleans())},
    )
    return rows, data, carve


def near(left: Row, right: Row) -> bool:
    if left["phash"] is None or right["phash"] is None:
        return False
    return (left["phash"] ^ right["phash"]).bit_count() <= 2


def related(left: Row, right: Row, data: DataParams) -> bool:
    rule = data.duplicates
    same = left["sha256"] == right["sha256"]
    return (
        bool(left["group"] and left["group"] == right["group"])
        or (same and "one_split" in (rule.exact, rule.near))
        or (near(left, right) and rule.near == "one_split")
    )


@settings(max_examples=200, deadline=None)
@given(tables())
def test_what_holds_of_every_table(given_table: tuple[list[Row], DataParams, Any]) -> None:
    rows, data, carve = given_table
    found = decided(rows, data, carve)
    by_key = {one["key"]: one for one in rows}
    accepted = [one for one in rows if found[one["key"]]["accepted"]]
    for one in rows:
        mine = found[one["key"]]
        assert mine["accepted"] == (mine["reason"] is None) == (mine["split"] is not None)
        if mine["accepted"]:
            assert mine["split"] == one["split"] or (
                one["split"] is None and mine["split"] in ("train", *carve)
            )
        if (copy := mine["duplicate_of"]) is not None:
            assert by_key[copy]["sha256"] == one["sha256"] and found[copy]["duplicate_of"] is None
        if (alike := mine["near_duplicate_of"]) is not None:
            assert near(by_key[alike], one) and found[alike]["near_duplicate_of"] is None
    for left, right in itertools.combinations(accepted, 2):
        if related(left, right, data):
            assert found[left["key"]]["split"] == found[right["key"]]["split"]
        if data.duplicates.exact == "drop":
            assert left["sha256"] != right["sha256"]
        if data.duplicates.near == "drop" and left["sha256"] != right["sha256"]:
            assert not near(left, right)


@settings(max_examples=80, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_rows_plays_no_part(
    given_table: tuple[list[Row], DataParams, Any], random: Any
) -> None:
    rows, data, carve = given_table
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert decided(rows, data, carve) == decided(shuffled, data, carve)


@settings(max_examples=200, deadline=None)
@given(tables(), st.data())
def test_what_comes_later_moves_nothing(
    given_table: tuple[list[Row], DataParams, Any], chosen: st.DataObject
) -> None:
    rows, data, carve = given_table
    early = [one for one in rows if chosen.draw(st.booleans())]
    first = decided(early, data, carve)
    previous = {key: one["split"] for key, one in first.items() if one["accepted"]}
    later = decided(rows, data, carve, previous)
    for key, split in previous.items():
        assert later[key]["accepted"] and later[key]["split"] == split


def test_images_that_only_the_later_rules_relate_stay_where_they_are() -> None:
    rows = [row("a", sha256="s"), row("b", sha256="s"), row("c", sha256="s")]
    previous = {"a": "train", "b": "test"}
    found = decided(rows, params(exact="one_split"), previous=previous)
    assert [found[key]["split"] for key in "abc"] == ["train", "test", None]
    assert found["c"]["reason"] == reasons.STRADDLES
