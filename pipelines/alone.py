"""One retraining at a time in a project, with a Prefect server or without."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mae.errors import MaestroError


class UnderWay(MaestroError):
    """Another retraining is at work in the project: this one did nothing."""

    exit_code = 7


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Hold `home`/lock, which goes with this process however it ends. Raises UnderWay, which says
    who holds it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UnderWay(f"another retraining is under way: {_holder(lock)}") from None
        lock.truncate(0)
        json.dump(
            {
                "process": os.getpid(),
                "machine": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            lock,
        )
        lock.flush()
        yield


def _holder(lock: Any) -> str:
    try:
        lock.seek(0)
        about = json.load(lock)
        return "process {process} on {machine}, since {since}".format(**about)
    except (ValueError, KeyError):
        return "it has only just begun"
