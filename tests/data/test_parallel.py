import threading
import time
from collections.abc import Generator

import pytest

from mae.data.loading.parallel import WaitClock, ordered_map


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


def test_the_clock_counts_waiting_alone_and_closes_what_it_watches() -> None:
    closed = []

    def slow() -> Generator[int, None, None]:
        try:
            for number in range(3):
                time.sleep(0.01)
                yield number
        finally:
            closed.append(True)

    clock = WaitClock()
    items = clock.over(slow())
    assert next(items) == 0
    first = clock.seconds
    assert first >= 0.01
    time.sleep(0.05)  # the consumer's own work
    assert clock.seconds == first
    assert list(items) == [1, 2]
    assert clock.seconds >= 0.03
    early = clock.over(slow())
    next(early)
    early.close()
    assert closed == [True, True]
