import threading
import time

import pytest

from mae.data.parallel import ordered_map


def test_results_come_in_order_whatever_the_timing() -> None:
    def slow_for_some(number: int) -> int:
        time.sleep(0.003 if number % 3 == 0 else 0)
        return number * number

    assert list(ordered_map(slow_for_some, range(50), 4, 8)) == [n * n for n in range(50)]


def test_an_exception_arrives_where_its_result_would() -> None:
    def fail_at_five(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    results = ordered_map(fail_at_five, range(100), 3, 6)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="five"):
        next(results)


def test_no_more_than_a_few_are_computed_early() -> None:
    taken = []
    results = ordered_map(lambda n: n, (taken.append(n) or n for n in range(1000)), 2, 4)
    next(results)
    assert len(taken) == 5
    results.close()


def test_closing_stops_the_threads() -> None:
    before = threading.active_count()
    results = ordered_map(lambda n: n, range(10**6), 4, 8)
    next(results)
    assert threading.active_count() > before
    results.close()
    assert threading.active_count() == before
