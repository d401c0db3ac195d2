"""Signals that ask a run to stop are noted, and obeyed between two steps."""

import signal
import threading
from types import FrameType

_ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupts:
    """While entered, SIGTERM, SIGINT and SIGUSR1 set `received`; a second SIGINT acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        # Only the main thread may set handlers; elsewhere whoever owns the process does.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _ASKING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
