"""How far a stage has come, from the lines that it prints."""

import logging
import re
import threading
from collections.abc import Callable

LOG = logging.getLogger(__name__)
SECONDS_BETWEEN = 5.0

_STEP = re.compile(r"\bstep (\d+) of (\d+)\b")


def share_done(line: str) -> float | None:
    """Return how much of a stage is done after `line`, 0 to 1; None where the line tells nothing.

    Training says "step 40 of 288".
    """
    found = _STEP.search(line)
    if not found or not int(found[2]):
        return None
    return min(1.0, int(found[1]) / int(found[2]))


class Progress:
    """Passes the progress on from a thread of its own, so that a slow receiver delays nobody.

    `tell` gets the latest share, at most once in `seconds`. Its first failure is logged and ends
    it.
    """

    def __init__(self, tell: Callable[[float], None], seconds: float = SECONDS_BETWEEN) -> None:
        self._tell, self._seconds = tell, seconds
        self._share: float | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def see(self, line: str) -> None:
        """Take note of a line of the stage's output; from one thread only."""
        share = share_done(line)
        if share is None:
            return
        self._share = share
        if self._thread is None:
            self._thread = threading.Thread(target=self._pass_on, name="progress", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Pass on the last share, within reason."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(self._seconds)

    def _pass_on(self) -> None:
        told = None
        ended = False
        while not ended or self._share != told:
            share = self._share
            if share is not None and share != told:
                try:
                    self._tell(share)
                except Exception as error:
                    LOG.warning("progress is shown no longer: %s", error)
                    return
                told = share
            ended = self._ended.wait(self._seconds)
