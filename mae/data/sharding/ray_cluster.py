"""Ray as a concurrent.futures.Executor: one on this machine for the time, or a cluster.

A Ray of our own listens on the loopback address alone and obeys nobody without its token.
"""

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from mae.data.sharding import ray_end
from mae.data.sharding.started import Started, missing, silent

Result = TypeVar("Result")

_SECONDS_TO_ANSWER = 10
_OBJECTS = 256 << 20  # bytes of memory that tasks pass through


@contextmanager
def ray_at_work(address: str | None, count: int) -> Iterator[Started]:
    """Start Ray with `count` workers, or join the cluster at `address`."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None:  # read when Ray is imported
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its name for other than loopback addresses
            "SPT_NOENV": "1",  # processes that name themselves keep the environment they show
        }
    try:
        import ray
    except ImportError:
        raise missing("ray") from None
    with ExitStack() as stack:
        with _sigterm_as_it_was():
            stack.enter_context(_own_ray(count) if address is None else _joined(address))
        slots = count if address is None else int(ray.cluster_resources().get("CPU", 0))
        gone = ray.exceptions
        lost = (
            gone.WorkerCrashedError,
            gone.OutOfMemoryError,
            gone.NodeDiedError,
            gone.LocalRayletDiedError,
            gone.ObjectLostError,
            gone.RaySystemError,
        )
        yield Started(_RayExecutor(), slots, lost)


@contextmanager
def _sigterm_as_it_was() -> Iterator[None]:
    """Take no part of Ray's way with SIGTERM, which is to leave at once with code 15."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _own_ray(count: int) -> Iterator[None]:
    import ray

    folder = tempfile.mkdtemp(prefix="ray-")
    # Isolated (-I), so that no module beside it shadows what the small script imports.
    end = subprocess.Popen(
        [sys.executable, "-I", ray_end.__file__, folder],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        ray.init(
            "local",  # and not what RAY_ADDRESS says
            num_cpus=count,
            object_store_memory=_OBJECTS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=folder,
        )
        yield
    finally:
        ray.shutdown()
        end.communicate()


@contextmanager
def _joined(address: str) -> Iterator[None]:
    import ray

    try:
        _knock(address)
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise silent("Ray cluster", address, error) from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()


class _RayExecutor(Executor):
    """Ray's tasks, one processor each, as concurrent.futures has them."""

    def __init__(self) -> None:
        import ray

        self._call: Any = ray.remote(num_cpus=1)(_call)

    def submit(
        self, function: Callable[..., Result], /, *arguments: Any, **named: Any
    ) -> Future[Result]:
        future: Future[Result] = self._call.remote(function, arguments, named).future()
        return future


def _call(function: Callable[..., Result], arguments: tuple, named: dict[str, Any]) -> Result:
    return function(*arguments, **named)
