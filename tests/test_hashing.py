import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mae.hashing import permutation, random_bits, stream, text_id, uniform

WORD = 2**64
IDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8)


def splitmix_finaliser(x: int) -> int:
    """The mixing function in plain unbounded integers, as an independent oracle."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


@given(st.integers(0, 2**31), st.integers(0, 5000), IDS)
def test_bits_equal_plain_integer_arithmetic(seed: int, epoch: int, ids: list[int]) -> None:
    bits = random_bits(seed, "test", epoch, torch.tensor(ids), 3)
    key = stream(seed, "test", epoch)
    for row, sample in zip(bits.tolist(), ids, strict=True):
        for index, value in enumerate(row, 1):
            start = splitmix_finaliser(sample ^ key)
            expected = splitmix_finaliser((start + index * 0x9E3779B97F4A7C15) % WORD)
            assert value % WORD == expected


@given(IDS)
def test_a_draw_does_not_depend_on_the_batch(ids: list[int]) -> None:
    together = uniform(1, "test", 2, torch.tensor(ids), 4)
    for row, sample in zip(together, ids, strict=True):
        assert torch.equal(row, uniform(1, "test", 2, torch.tensor([sample]), 4)[0])


def test_draws_are_uniform_and_uncorrelated() -> None:
    draws = uniform(0, "test", 0, torch.arange(20_000), 4).numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        counts, _ = np.histogram(column, bins=20, range=(0, 1))
        assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-square, 19 degrees: p about 1e-3
    others = np.column_stack([draws, uniform(1, "test", 0, torch.arange(20_000), 1).numpy()])
    correlation = np.corrcoef(others.T) - np.eye(5)
    assert np.abs(correlation).max() < 0.03


@pytest.mark.parametrize("other", [(1, "a", 0), (0, "b", 0), (0, "a", 1)])
def test_streams_differ_in_every_argument(other: tuple[int, str, int]) -> None:
    assert stream(0, "a", 0) != stream(*other)


def test_permutations_are_permutations_and_change_with_the_epoch() -> None:
    first, second = permutation(0, "order", 0, 1000), permutation(0, "order", 1, 1000)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert not torch.equal(first, second)
    assert torch.equal(first, permutation(0, "order", 0, 1000))


def test_text_ids_are_the_head_of_sha256() -> None:
    assert (
        text_id("grüße/1.png")
        == int(hashlib.sha256("grüße/1.png".encode()).hexdigest()[:16], 16) >> 1
    )


def test_nothing_touches_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    uniform(0, "test", 0, torch.arange(10), 3)
    permutation(0, "test", 0, 10)
    assert torch.equal(before, torch.get_rng_state())
