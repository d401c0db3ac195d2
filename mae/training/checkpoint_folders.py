"""Folders that come and go under the eyes of kills: each bears its name only while it is whole.

What a writer is at work on has a hidden name with its machine and process in it, so that whoever
comes later can tell a dead writer's left-overs from a living one's work.
"""

import logging
import os
import re
import shutil
import socket
from pathlib import Path

from mae.files import flush_to_disk

LOG = logging.getLogger(__name__)

_HOST = socket.gethostname()
_HIDDEN = re.compile(r"\.(.+)\.(\d+)\.(new|old)")


def being_written(final: Path) -> Path:
    """Return the hidden name under which this process makes `final`."""
    return _hidden(final, "new")


def put_in_place(temporary: Path, final: Path) -> None:
    """Rename; what has the name already is moved out of the way, and removed afterwards."""
    replaced = _hidden(final, "old")
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    flush_to_disk(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a folder; half removed it no longer bears its name. Failing is a warning."""
    hidden = _hidden(folder, "new")
    try:
        folder.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        LOG.warning("cannot remove %s: %s", folder, error)


def set_aside(folder: Path) -> Path:
    """Rename `folder` to damaged-...; another process may have done so already."""
    aside = folder.with_name(f"damaged-{folder.name}")
    count = 1
    while aside.exists():
        count += 1
        aside = folder.with_name(f"damaged-{folder.name}-{count}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        pass
    except OSError as error:
        LOG.warning("cannot rename %s: %s", folder, error)
    return aside


def clean(parent: Path) -> None:
    """Remove what writers that are no more left in `parent`; put back what they were replacing."""
    if not parent.exists():
        return
    for path in list(parent.iterdir()):
        match = _HIDDEN.fullmatch(path.name)
        if match is None or not match[1].endswith(f".{_HOST}") or _lives(int(match[2])):
            continue
        final = parent / match[1].removesuffix(f".{_HOST}")
        if match[3] == "old" and not final.exists():
            path.rename(final)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _hidden(final: Path, kind: str) -> Path:
    return final.with_name(f".{final.name}.{_HOST}.{os.getpid()}.{kind}")


def _lives(process: int) -> bool:
    """Whether another process has that number; this one is never cleaning while it writes."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
