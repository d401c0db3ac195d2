"""A stage never outlives the dvc that started it, nor a flow the worker that did.

DVC that is killed leaves its stage running, and the next `dvc repro` would start a second one in
the same place. So a stage holds a pidfd on each process between itself and DVC (DVC itself, and
the shell where that stays in between) and ends when one of them does. A pidfd is preferred to
prctl(PR_SET_PDEATHSIG), which sees only the direct parent and fires when a mere thread of it ends.
"""

import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache, partial

import psutil

from mae.errors import Interrupted
from pipelines.processes import environment, is_dvc, send

LOG = logging.getLogger(__name__)
GRACE_SECONDS = 60.0
DVC = "DVC_STAGE"  # in the environment of all that dvc starts for a stage
RUN = "PREFECT__FLOW_RUN_ID"  # in that of all that a worker, or `serve`, starts for a run


def end_with_dvc(grace: float = GRACE_SECONDS) -> None:
    """Send this process SIGTERM when DVC dies, and SIGKILL to its whole tree `grace` s later.

    Does nothing when the stage was started by hand. Raises Interrupted when DVC is gone already.
    """
    if DVC not in os.environ:
        return
    myself = psutil.Process()
    try:
        watched = [os.pidfd_open(process.pid) for process in _up_to_first_without(myself, DVC)]
        if is_orphan(myself):
            raise ProcessLookupError
    except (ProcessLookupError, psutil.NoSuchProcess):
        raise Interrupted("dvc, which started this stage, is gone: run it again") from None
    except OSError as error:
        LOG.warning("cannot watch dvc (%s): should it be killed, end this stage by hand", error)
        return
    _watch(watched, partial(LOG.error, "dvc, which started this stage, has died: stopping"), grace)


@cache
def end_with_worker(grace: float = GRACE_SECONDS) -> None:
    """Send this process, a flow run, SIGTERM when the worker that started it dies, then SIGKILL.

    Nobody could cancel it any more. Does nothing in a process that no worker or `serve` started.
    """
    if RUN not in os.environ:
        return
    try:
        chain = _up_to_first_without(psutil.Process(), RUN)
        watched = [os.pidfd_open(process.pid) for process in chain]
    except (OSError, psutil.NoSuchProcess) as error:
        LOG.warning("cannot watch the worker (%s): should it be killed, this run goes on", error)
        return
    if watched:
        _watch(watched, _write_to_nobody, grace)


def is_orphan(process: psutil.Process) -> bool:
    """Tell whether the dvc that started `process`, a stage or a child of one, has died.

    What looks like DVC may be the process (init or another reaper) that is handed the children
    of the dead. DVC may also be driven from Python, so a name without "dvc" is no proof by
    itself. A session without leader is: where pipelines/runner.py started DVC, that is DVC.
    """
    chain = _up_to_first_without(process, DVC)
    if not chain:
        return True
    top = chain[-1]
    if is_dvc(top) or "python" in top.name():
        return False
    session = os.getsid(process.pid)
    return top.pid == 1 or (session > 0 and not psutil.pid_exists(session))


def _up_to_first_without(process: psutil.Process, variable: str) -> list[psutil.Process]:
    """Return the ancestors up to who started it all: the first that lacks what it hands down."""
    chain = []
    for ancestor in process.parents():
        chain.append(ancestor)
        if variable not in environment(ancestor):
            break
    return chain


def _write_to_nobody() -> None:
    """Part from our output, which the dead worker was to read.

    Prefect logs through rich, which ends the thread whose line meets a broken pipe.
    """
    nobody = os.open(os.devnull, os.O_WRONLY)
    for output in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(nobody, output)


def _watch(watched: list[int], first: Callable[[], None], grace: float) -> None:
    """Wait, in a thread, for the end of one of the processes with these pidfds; then end too."""

    def watch() -> None:
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        poll.poll()
        first()
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(grace)
        end_offspring()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def end_offspring() -> None:
    """Kill every process below this one."""
    for process in psutil.Process().children(recursive=True):
        LOG.warning("process %d was left running: killed", process.pid)
        send(process, signal.SIGKILL)
