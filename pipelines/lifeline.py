"""A stage never outlives the dvc that started it.

DVC that is killed leaves its stage running, and the next `dvc repro` would start a second one in
the same place. So a stage holds a pidfd on each process between itself and DVC (DVC itself, and
the shell where that stays in between) and ends when one of them does. A pidfd is preferred to
prctl(PR_SET_PDEATHSIG), which sees only the direct parent and fires when a mere thread of it ends.
"""

import contextlib
import logging
import os
import select
import signal
import threading

import psutil

from mae.errors import Interrupted

LOG = logging.getLogger(__name__)
GRACE_SECONDS = 60.0


def end_with_dvc(grace: float = GRACE_SECONDS) -> None:
    """Send this process SIGTERM when DVC dies, and SIGKILL to its whole tree `grace` s later.

    Does nothing when the stage was started by hand. Raises Interrupted when DVC is gone already.
    """
    if "DVC_STAGE" not in os.environ:
        return
    try:
        chain = _up_to_dvc()
        watched = [os.pidfd_open(process.pid) for process in chain]
        if not chain or _has_adopted_us(chain[-1]):
            raise ProcessLookupError
    except (ProcessLookupError, psutil.NoSuchProcess):
        raise Interrupted("dvc, which started this stage, is gone: run it again") from None
    except OSError as error:
        LOG.warning("cannot watch dvc (%s): should it be killed, end this stage by hand", error)
        return
    threading.Thread(target=_watch, args=(watched, grace), name="lifeline", daemon=True).start()


def _up_to_dvc() -> list[psutil.Process]:
    """Return the ancestors up to DVC: it is the first that lacks the DVC_STAGE it hands down."""
    chain = []
    for ancestor in psutil.Process().parents():
        chain.append(ancestor)
        try:
            if "DVC_STAGE" not in ancestor.environ():
                break
        except psutil.AccessDenied:
            break
    return chain


def _has_adopted_us(ancestor: psutil.Process) -> bool:
    """Tell DVC from the process (init or another reaper) that is handed the children of the dead.

    DVC may also be driven from Python, so a name without "dvc" is no proof by itself. A session
    without leader is: the leader is DVC itself where pipelines/runner.py started it.
    """
    if any("dvc" in part for part in ancestor.cmdline()) or "python" in ancestor.name():
        return False
    session = os.getsid(0)
    return ancestor.pid == 1 or (session > 0 and not psutil.pid_exists(session))


def _watch(watched: list[int], grace: float) -> None:
    poll = select.poll()
    for descriptor in watched:
        poll.register(descriptor, select.POLLIN)
    poll.poll()
    LOG.error("dvc, which started this stage, has died: stopping")
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(grace)
    end_tree(psutil.Process())


def end_tree(process: psutil.Process) -> None:
    """Kill `process` and all its descendants, itself last."""
    try:
        for child in process.children(recursive=True):
            _kill(child)
    except psutil.NoSuchProcess:
        return
    _kill(process)


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
