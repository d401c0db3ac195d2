"""Programs beside the stages (dvc push, a comparison, a report), which end with whoever asked."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mae.errors import Interrupted, MaestroError
from pipelines import tether
from pipelines.lifeline import GRACE_SECONDS
from pipelines.processes import POLL_SECONDS

_KEPT = 50  # lines of what it said last


def start_tethered(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> "subprocess.Popen[str]":
    """Start a command in a session of its own that ends with us; its output is one stream."""
    # Isolated (-I), so that no module of the project shadows what the small script imports.
    tethered = [sys.executable, "-I", tether.__file__, str(os.getpid())]
    return subprocess.Popen(
        [*tethered, *command],
        cwd=folder,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def ask_to_end(process: "subprocess.Popen[str]", grace: float) -> None:
    """Press Ctrl-C, as it were, in the process's session, and wait up to `grace` seconds."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    end = time.monotonic() + grace
    while process.poll() is None and time.monotonic() < end:
        time.sleep(POLL_SECONDS)


def run_module(
    module: str,
    *arguments: str,
    folder: Path,
    on_line: Callable[[str], None],
    stop: threading.Event,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run `python -m module arguments` in `folder` and return what it said last.

    Each line goes to `on_line`. Raises MaestroError with the program's own words when it fails,
    Interrupted when `stop` was set. Nothing it started is left.
    """
    command = [sys.executable, "-m", module, *arguments]
    process = start_tethered(command, folder, {**os.environ, **(environment or {})})
    said: list[str] = []
    reader = threading.Thread(target=_read, args=(process, said, on_line), daemon=True)
    reader.start()
    try:
        while process.poll() is None and not stop.wait(POLL_SECONDS):
            pass
        if process.poll() is None:
            ask_to_end(process, GRACE_SECONDS)
    finally:
        _kill(process)
        reader.join(GRACE_SECONDS)
    if process.returncode != 0:
        if stop.is_set():
            raise Interrupted(f"{module} was asked to stop: run again to continue")
        words = "\n".join(said).strip() or f"it left with code {process.returncode}"
        raise MaestroError(f"{module} {arguments[0] if arguments else ''} failed: {words}")
    return "\n".join(said)


def _read(
    process: "subprocess.Popen[str]", said: list[str], on_line: Callable[[str], None]
) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text := line.rstrip():
            said.append(text)
            del said[:-_KEPT]
            on_line(text)


def _kill(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
