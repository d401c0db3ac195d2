"""Finding processes by what stands in their environment, and waiting for them to end."""

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

POLL_SECONDS = 0.1


def environment(process: psutil.Process) -> dict[str, str]:
    """Return the environment `process` was started with, empty where it may not be read."""
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def is_dvc(process: psutil.Process) -> bool:
    """Tell whether `process` is a dvc command: `dvc ...` or `python -m dvc ...`."""
    try:
        return any(Path(part).name == "dvc" for part in process.cmdline()[:3])
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def marked(**variables: str) -> list[psutil.Process]:
    """Return the living processes that were started with all these environment variables.

    Unlike a process group or a session, a mark is not lost by a child that starts its own.
    """
    return [
        process
        for process in psutil.process_iter()
        if variables.items() <= environment(process).items()
    ]


def send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def wait_until_gone(
    find: Callable[[], list[psutil.Process]], seconds: float
) -> list[psutil.Process]:
    """Wait until `find` finds nothing, at most `seconds`; return what it still finds then."""
    end = time.monotonic() + seconds
    while (found := find()) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return found
