import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mae.evaluation.intervals import interval_over_seeds, wilson


@given(st.lists(st.integers(0, 1000).map(lambda right: right / 1000), min_size=2, max_size=10))
def test_over_seeds_agrees_with_scipy(values: list[float]) -> None:
    found = interval_over_seeds(values)
    mean, error = sum(values) / len(values), stats.sem(values)
    half = stats.t.ppf(0.975, len(values) - 1) * error
    assert found == pytest.approx((mean - half, mean + half), abs=1e-12)


def test_a_single_seed_has_no_interval() -> None:
    assert interval_over_seeds([0.7]) is None


@given(st.integers(1, 3000), st.data())
def test_wilson_agrees_with_scipy(images: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, images))
    wanted = stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert wilson(right / images, images) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
