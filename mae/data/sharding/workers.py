"""Processes that examine images and write shards."""

import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from mae.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

PATIENCE_SECONDS = 3.0


def run_all(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[Result]:
    """Yield function(task) for each task as they are done, computed by `workers` processes.

    Processes take seconds to start: the first tasks are computed here, and what is left after
    as long a time goes to them. The first exception of a task is raised; tasks not yet begun are
    then dropped. Processes end with this one, however it ends.
    """
    started = time.monotonic()
    left = list(tasks)
    while left and (len(left) < 2 or time.monotonic() - started < PATIENCE_SECONDS):
        yield function(left.pop(0))
    if left:
        yield from _in_processes(function, left, workers)


def _in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[Result]:
    # Not fork: a child would inherit the locks of this process's threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mae.data.sharding.run"])
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=context,
        initializer=_end_with,
        initargs=(os.getpid(),),
    )
    try:
        futures: list[Future[Result]] = [pool.submit(function, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise DataError(
            "a process that worked on images was killed, most often for want of memory: lower "
            "data.max_pixels or free memory, and run again; what is done is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with(process: int) -> None:
    """Let this process end as soon as another, the one it works for, is gone.

    The processes of a forkserver are its children, so the kernel's own signal on a parent's death
    would tell of the wrong one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        lifeline = os.pidfd_open(process)
    except ProcessLookupError:
        os._exit(1)
    threading.Thread(target=_wait_and_exit, args=(lifeline,), daemon=True).start()


def _wait_and_exit(lifeline: int) -> None:
    select.select([lifeline], [], [])
    os._exit(1)
