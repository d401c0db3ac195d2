"""Threads that work ahead, in order: what they deliver never depends on their timing."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int
) -> Generator[Result, None, None]:
    """Yield function(item) for each item, in order, computing at most `ahead` of them early.

    An exception of `function` is raised where its result would have come. Closing the iterator
    (or an exception in the consumer) stops the threads.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="mae-data")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class WaitClock:
    """Counts how long a consumer waits for what it iterates over."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, items: Generator[Item, None, None]) -> Generator[Item, None, None]:
        """Yield the items; closing this closes them."""
        try:
            while True:
                before = time.perf_counter()
                try:
                    item = next(items)
                except StopIteration:
                    return
                finally:
                    self.seconds += time.perf_counter() - before
                yield item
        finally:
            items.close()
