"""Those who examine images and write shards, wherever they are."""

import functools
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Future,
    wait,
)
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from mae.data.sharding.executors import started
from mae.data.sharding.started import Started
from mae.errors import DataError, MaestroError
from mae.params import ExecutorParams

Task = TypeVar("Task")
Result = TypeVar("Result")

PATIENCE_SECONDS = 3.0
PROCESSES = ExecutorParams(kind="processes", address=None)
_AHEAD = 4  # tasks handed out for each that is being done, so that nobody waits for the next
_FEWEST_AHEAD = 64  # a cluster may grow
_SHAPING = ("imagecodecs", "imagehash", "lmdb", "numpy", "pillow", "simplejpeg", "tifffile")


class Workers:
    """They are started when there is enough to do, and end with this process or this block.

    count: how many, where it is not a cluster that has its own. workspace: where they write.
    """

    def __init__(self, executor: ExecutorParams, count: int, workspace: Path) -> None:
        self._params, self._count, self._workspace = executor, count, workspace
        self._stack = ExitStack()
        self._started: Started | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def run_all(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Iterator[Result]:
        """Yield function(task) for each task as they are done.

        All but threads take seconds to start: until they have, the first tasks are computed here,
        and what is left after as long a time goes to them. The first exception of a task is
        raised; tasks not yet begun are then dropped.
        """
        begun = time.monotonic()
        left = deque(tasks)
        while self._wait_with_starting(len(left), time.monotonic() - begun):
            yield function(left.popleft())
        if not left:
            return
        if self._started is None:
            self._started = self._stack.enter_context(started(self._params, self._count))
        lost: tuple[type[BaseException], ...] = (
            BrokenExecutor,
            CancelledError,
            *self._started.lost,
        )
        try:
            with self._handed_over(function) as call:
                yield from _done(self._started, call, left)
        except lost as error:
            raise DataError(
                "a worker that was busy with images was lost, most often for want of memory: lower "
                "data.max_pixels or free memory, and run again; what is done is kept "
                f"({type(error).__name__})"
            ) from None

    def _wait_with_starting(self, left: int, seconds: float) -> bool:
        if not left or self._started or self._params.kind == "threads":
            return False
        return left < 2 or seconds < PATIENCE_SECONDS

    @contextmanager
    def _handed_over(self, function: Callable[[Task], Result]) -> Iterator[Callable[[Task], Any]]:
        """Yield what the executor is to call in place of `function`."""
        if self._params.kind in ("threads", "processes"):
            yield function
            return
        beacon = self._workspace.resolve() / f"beacon-{uuid.uuid4().hex}"
        beacon.touch()
        home = _Home(socket.gethostname(), Path.cwd(), beacon, tuple(made_with().items()))
        try:
            yield functools.partial(_at_home, home, function)
        finally:
            # A change to the folder also lets a network file system see what others wrote there.
            beacon.unlink()


def _done(
    running: Started, function: Callable[[Task], Result], tasks: deque[Task]
) -> Iterator[Result]:
    """Keep a bounded number of tasks handed out: a cluster would hold them all in memory."""
    ahead = max(_FEWEST_AHEAD, _AHEAD * running.slots)
    waiting: set[Future[Any]] = set()
    try:
        while tasks or waiting:
            while tasks and len(waiting) < ahead:
                waiting.add(running.executor.submit(function, tasks.popleft()))
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield _result(future)
    finally:
        for future in waiting:
            future.cancel()


def _result(future: Future[Any]) -> Any:
    result = future.result()
    if isinstance(result, MaestroError):
        raise result
    return result


# --- on a machine of a cluster ----------------------------------------------------------------


@dataclass(frozen=True)
class _Home:
    """The machine that hands out the tasks: its name, working folder, and a file to be seen."""

    host: str
    folder: Path
    beacon: Path
    made_with: tuple[tuple[str, str], ...]

    def enter(self) -> None:
        """Work in that very folder. Raises DataError where this is another file system or code."""
        here = socket.gethostname()
        if not self.beacon.is_file():
            raise DataError(
                f"the worker on {here} does not see {self.beacon.parent} of {self.host}: every "
                "machine must have the project and its images on one file system, at one path"
            )
        mine = made_with()
        for name, theirs in self.made_with:
            if mine[name] != theirs:
                raise DataError(
                    f"the worker on {here} has {name} {mine[name]}, and {self.host} {theirs}: "
                    "install the same everywhere, or the shards' bytes would depend on who wrote"
                )
        if Path.cwd() != self.folder:
            os.chdir(self.folder)


def _at_home(home: _Home, function: Callable[[Task], Result], task: Task) -> Result | MaestroError:
    """Return what is to be raised: clusters wrap an exception in others of their own."""
    try:
        home.enter()
        return function(task)
    except MaestroError as error:
        return error


@functools.cache
def made_with() -> dict[str, str]:
    """Return the versions of what the bytes of shards depend on."""
    from mae.data.sharding.assembly import code_of

    return {"this code": code_of()[:12]} | {name: _version(name) for name in _SHAPING}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
