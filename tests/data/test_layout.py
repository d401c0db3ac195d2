"""New images come into new shards; only shards that lose an image are written again."""

from hypothesis import given
from hypothesis import strategies as st

from mae.data.sharding.layout import Layout, Shard, Stored, lay_out
from mae.data.sharding.splits import SPLITS

LIMIT = 10


def images(*keys: str, split: str = "train", length: int = 3) -> list[Stored]:
    return [Stored(key, split, f"proof of {key}", length) for key in sorted(keys)]


def after(layout: Layout) -> list[Shard]:
    return sorted(layout.shards, key=lambda shard: (shard.split, shard.number))


def proofs(stored: list[Stored]) -> dict[str, str]:
    return {one.key: one.proof for one in stored}


def test_shards_are_filled_in_order_up_to_the_limit() -> None:
    layout = lay_out(images(*"abcdefg"), (), {}, LIMIT)
    assert layout.kept == ()
    assert [shard.keys for shard in layout.written] == [tuple("abc"), tuple("def"), ("g",)]
    assert [shard.name for shard in layout.written][1] == "train/shard-00001.mdb"


def test_an_image_above_the_limit_has_a_shard_of_its_own() -> None:
    layout = lay_out(images("a", "c") + images("b", length=99), (), {}, LIMIT)
    assert sorted(shard.keys for shard in layout.written) == [("a", "c"), ("b",)]


def test_new_images_leave_old_shards_alone() -> None:
    old = images(*"bdfh")
    first = lay_out(old, (), {}, LIMIT)
    second = lay_out(images(*"abcdefgh"), after(first), proofs(old), LIMIT)
    assert second.kept == first.written
    assert [(shard.number, shard.keys) for shard in second.written] == [
        (2, tuple("ace")),
        (3, ("g",)),
    ]


def test_a_removed_image_rewrites_its_shard_alone() -> None:
    old = images(*"abcdef")
    first = lay_out(old, (), {}, LIMIT)
    second = lay_out(images(*"abcdf"), after(first), proofs(old), LIMIT)
    assert second.kept == first.written[:1]
    assert second.written == (Shard("train", 1, ("d", "f")),)


def test_a_shard_that_loses_everything_goes() -> None:
    old = images(*"abcd")
    first = lay_out(old, (), {}, LIMIT)
    second = lay_out(images(*"abc"), after(first), proofs(old), LIMIT)
    assert (second.kept, second.written) == (first.written[:1], ())


def test_an_image_that_changed_moves_to_a_new_shard() -> None:
    old = images(*"abcd")
    first = lay_out(old, (), {}, LIMIT)
    new = [*images("a", "c", "d"), Stored("b", "train", "another proof", 3)]
    second = lay_out(new, after(first), proofs(old), LIMIT)
    assert second.kept == first.written[1:]
    assert [shard.keys for shard in second.written] == [("a", "c"), ("b",)]


@st.composite
def histories(draw: st.DrawFn) -> list[list[Stored]]:
    """A dataset at several times: images come, go, change, and change their split."""
    keys = st.sampled_from([f"{number:02d}" for number in range(30)])
    about = st.tuples(st.sampled_from(SPLITS), st.integers(0, 2), st.integers(1, 8))
    times = draw(st.lists(st.dictionaries(keys, about, min_size=1), min_size=1, max_size=4))
    return [
        [
            Stored(key, split, str(proof), length)
            for key, (split, proof, length) in sorted(time.items())
        ]
        for time in times
    ]


@given(histories())
def test_every_image_lies_once_where_it_belongs(history: list[list[Stored]]) -> None:
    shards: list[Shard] = []
    known: dict[str, str] = {}
    for wanted in history:
        layout = lay_out(wanted, shards, known, LIMIT)
        placed = [(shard.split, key) for shard in layout.shards for key in shard.keys]
        assert sorted(placed) == sorted((one.split, one.key) for one in wanted)
        names = [shard.name for shard in layout.shards]
        assert len(set(names)) == len(names)
        now = proofs(wanted)
        for shard in layout.kept:
            assert shard in shards
            assert all(known[key] == now[key] for key in shard.keys)
        assert lay_out(wanted, after(layout), now, LIMIT).written == ()
        shards, known = after(layout), now
