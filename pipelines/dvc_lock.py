"""Repairs to DVC's lock file after a death at the wrong moment.

DVC records who reads and writes what in .dvc/tmp/rwlock. Killed while it writes that file, it
leaves it empty, and every later command fails; killed while a stage runs, it leaves its process
id, which blocks again once the system gives that id to somebody else (at once in a container).
"""

import json
import logging
from pathlib import Path
from typing import Any

import psutil

from mae.errors import MaestroError
from mae.files import write_json
from pipelines.processes import is_dvc

LOG = logging.getLogger(__name__)


def heal_rwlock(root: Path) -> None:
    """Drop what dead processes left in the lock file, under the guard that DVC itself takes.

    Raises MaestroError when the file is damaged while a dvc is at work in `root`: waiting is the
    only safe thing then.
    """
    from dvc.lock import LockError, make_lock

    folder = root / ".dvc" / "tmp"
    path = folder / "rwlock"
    if not path.exists():
        return
    try:
        with make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder)):
            _heal(path, root.resolve())
    except LockError:
        LOG.warning("dvc is changing %s: left as it is", path)


def _heal(path: Path, root: Path) -> None:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        if workers := [process.pid for process in psutil.process_iter() if _at_work(process, root)]:
            raise MaestroError(
                f"{path} is damaged while dvc is at work (process {workers[0]}): "
                "wait until it has ended and start again"
            ) from None
        LOG.warning("%s was left damaged by a dvc that was killed: removed", path)
        path.unlink()
        return
    alive = _without_dead(held)
    if alive != held:
        LOG.warning("%s named processes that are dvc no longer: removed", path)
        write_json(path, alive)


def _without_dead(held: dict[str, Any]) -> dict[str, Any]:
    write = {name: by for name, by in held.get("write", {}).items() if _is_live_dvc(by["pid"])}
    read = {
        name: alive
        for name, readers in held.get("read", {}).items()
        if (alive := [by for by in readers if _is_live_dvc(by["pid"])])
    }
    return {key: value for key, value in (("write", write), ("read", read)) if key in held}


def _is_live_dvc(pid: int) -> bool:
    try:
        return is_dvc(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def _at_work(process: psutil.Process, root: Path) -> bool:
    try:
        return is_dvc(process) and Path(process.cwd()).is_relative_to(root)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
