"""Pairs of near hashes against comparing everything with everything."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mae.data.sharding import duplicates
from mae.data.sharding.duplicates import first_near, first_of_each, near_pairs
from mae.errors import DataError


def all_pairs(hashes: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None])
    return np.argwhere(np.triu((apart <= bits) & (apart > 0), 1))


def clustered(seed: int, clusters: int, members: int, flips: int) -> NDArray[np.uint64]:
    """Return different hashes around a few centres, themselves included, in random order."""
    random = np.random.default_rng(seed)
    hashes = np.repeat(random.integers(0, 1 << 64, clusters, dtype=np.uint64), members)
    others = np.arange(len(hashes)) % members > 0
    for _ in range(flips):
        which = random.integers(0, 64, len(hashes), dtype=np.uint64)
        hashes[others] ^= (np.uint64(1) << which)[others]
    return random.permutation(np.unique(hashes))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    clusters=st.integers(1, 60),
    members=st.integers(1, 30),
    flips=st.integers(0, 12),
    bits=st.integers(0, 16),
)
def test_exactly_the_near_pairs_are_found(
    seed: int, clusters: int, members: int, flips: int, bits: int
) -> None:
    hashes = clustered(seed, clusters, members, flips)
    assert np.array_equal(near_pairs(hashes, bits), all_pairs(hashes, bits))


@pytest.mark.parametrize("bits", [1, 4, 9, 16])
def test_thousands_of_hashes(bits: int) -> None:
    hashes = clustered(bits, 400, 7, 1)
    found = near_pairs(hashes, bits)
    assert np.array_equal(found, all_pairs(hashes, bits))
    assert len(found) > 100


@pytest.mark.parametrize("agreeing", [1, 2, 3, 4, 5])
def test_any_number_of_agreeing_blocks_finds_the_same(
    agreeing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = clustered(5, 30, 12, 5)
    monkeypatch.setattr(duplicates, "_agreeing_blocks", lambda count, bits: agreeing)
    assert np.array_equal(near_pairs(hashes, 4), all_pairs(hashes, 4))


def test_small_pieces_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = clustered(6, 10, 60, 4)
    expected = all_pairs(hashes, 6)
    monkeypatch.setattr(duplicates, "_AT_ONCE", 100)
    assert np.array_equal(near_pairs(hashes, 6), expected)


def test_a_set_where_everything_is_alike_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_AT_ONCE", 100)
    monkeypatch.setattr(duplicates, "_MOST_PAIRS", 1000)
    with pytest.raises(DataError, match="near_bits"):
        near_pairs(np.arange(200, dtype=np.uint64), 8)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), count=st.integers(1, 40), edges=st.integers(0, 120))
def test_nothing_that_stays_is_near_another_and_all_else_is(
    seed: int, count: int, edges: int
) -> None:
    drawn = np.random.default_rng(seed).integers(0, count, (edges, 2))
    pairs = np.unique(np.sort(drawn[drawn[:, 0] != drawn[:, 1]], axis=1), axis=0)
    first = first_near(pairs, count)
    stays = first < 0
    near = np.zeros((count, count), bool)
    near[pairs[:, 0], pairs[:, 1]] = True
    assert not near[np.ix_(stays, stays)].any()
    for later in np.flatnonzero(~stays):
        candidates = np.flatnonzero(near[:, later] & stays)
        assert first[later] == candidates[0]


def test_a_chain_loses_every_other_member() -> None:
    pairs = np.array([[0, 1], [1, 2], [2, 3]])
    assert first_near(pairs, 4).tolist() == [-1, 0, -1, 2]


def test_the_first_of_each_code_by_order() -> None:
    codes = np.array([7, -1, 3, 7, 3, -1])
    assert first_of_each(codes, np.array([5, 4, 3, 2, 1, 0])).tolist() == [3, 1, 4, 3, 4, 5]
    assert first_of_each(np.array([], np.int64), np.array([], np.int64)).tolist() == []
