"""Runs one stage through DVC and leaves nothing behind, however it ends.

`dvc repro` is the stable interface (its Python one hides what stages print). It gets a session
of its own and dies with us (tether.py); the stage dies with it (lifeline.py).
"""

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from mae.errors import Interrupted
from pipelines.children import ask_to_end, start_tethered
from pipelines.dvc_lock import heal_rwlock
from pipelines.lifeline import GRACE_SECONDS, is_orphan
from pipelines.outcome import TIMED_OUT_CODE, Outcome, OutcomeReader, StageRun
from pipelines.processes import POLL_SECONDS, marked, send, wait_until_gone

LOG = logging.getLogger(__name__)
RUN_MARK = "MAESTRO_RUN"  # in the environment of every process of one run of a stage


def reproduce(
    root: Path,
    stage: str,
    on_line: Callable[[str], None],
    stop: threading.Event,
    *,
    force: bool = False,
    grace: float = GRACE_SECONDS,
    timeout: float | None = None,
) -> StageRun:
    """Run `dvc repro --single-item stage` in `root` and say how it ended.

    Each line of output goes to `on_line`, from another thread. When `stop` is set, or after
    `timeout` seconds, the stage is asked to end and killed `grace` seconds later. No process of
    the stage is left on return.
    """
    started = time.monotonic()
    stopped = StageRun(stage, Outcome.INTERRUPTED, 0.0, Interrupted.exit_code, "asked to stop")
    if stop.is_set():
        return stopped
    root = root.resolve()
    heal_rwlock(root)
    _end_orphans(root, stage, grace)
    reader = OutcomeReader()
    run = uuid.uuid4().hex
    process = _start(root, stage, force, run)
    thread = threading.Thread(target=_read, args=(process, reader, on_line), daemon=True)
    thread.start()
    late = False
    try:
        late = not _ended_or_stopped(process, stop, timeout)
        if late or stop.is_set():
            # Ctrl-C: dvc leaves it to its stage, then puts its locks in order.
            ask_to_end(process, grace)
    finally:
        code = process.poll()
        _kill_all(run)
        code = process.wait() if code is None else code
        thread.join(grace)
    seconds = time.monotonic() - started
    outcome, exit_code, message = reader.result(code)
    if stop.is_set() and not outcome.good:
        return replace(stopped, seconds=seconds)
    if late and not outcome.good:
        outcome, exit_code = Outcome.TIMED_OUT, TIMED_OUT_CODE
        message = f"asked to stop after {timeout:g} s: run it again to continue"
    return StageRun(stage, outcome, seconds, exit_code, message)


def _ended_or_stopped(
    process: subprocess.Popen[str], stop: threading.Event, timeout: float | None
) -> bool:
    """Wait for either; False when neither has come in time."""
    end = math.inf if timeout is None else time.monotonic() + timeout
    while process.poll() is None and not stop.wait(POLL_SECONDS):
        if time.monotonic() > end:
            return False
    return True


def _start(root: Path, stage: str, force: bool, run: str) -> subprocess.Popen[str]:
    dvc = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    return start_tethered([*dvc, *(["--force"] if force else [])], root, _environment(run))


def _environment(run: str) -> dict[str, str]:
    """Return ours, with `python` in a stage's command meaning this very interpreter."""
    folder = str(Path(sys.executable).parent)
    return {
        **{
            name: value
            for name, value in os.environ.items()
            if name not in ("DVC_ROOT", "DVC_STAGE")
        },
        RUN_MARK: run,
        "PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)]),
    }


def _read(
    process: subprocess.Popen[str], reader: OutcomeReader, on_line: Callable[[str], None]
) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text := line.rstrip():
            reader.see(text)
            try:
                on_line(text)
            except (Exception, SystemExit):  # such a fault must not block the stage on a full pipe
                LOG.exception("the output of a stage could not be passed on")


def _kill_all(run: str) -> None:
    while members := marked(**{RUN_MARK: run}):
        for process in members:
            send(process, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _end_orphans(root: Path, stage: str, grace: float) -> None:
    """See off what a killed dvc left of this stage, so that two never write to one place.

    They have been told already (lifeline.py) and may be saving their work.
    """

    def orphans() -> list[psutil.Process]:
        return [one for one in marked(DVC_ROOT=str(root), DVC_STAGE=stage) if is_orphan(one)]

    for one in orphans():
        LOG.warning("process %d of an earlier '%s' is still ending: waiting", one.pid, stage)
    for one in wait_until_gone(orphans, grace):
        send(one, signal.SIGKILL)
