"""The lock file is mended only where no living dvc depends on it."""

import json
import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from mae.errors import MaestroError
from pipelines.dvc_lock import heal_rwlock
from pipelines.processes import is_dvc


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def dvc(tmp_path: Path):
    """Yield the id of a process that looks like a dvc at work in the project."""
    process = subprocess.Popen(["bash", "-c", "exec -a dvc sleep 60"], cwd=tmp_path)
    while not is_dvc(psutil.Process(process.pid)):
        time.sleep(0.01)  # bash has not yet become "dvc"
    yield process.pid
    process.kill()
    process.wait()


def test_nothing_to_heal(tmp_path: Path) -> None:
    heal_rwlock(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", '{"write": {', "[]x"])
def test_a_damaged_file_goes(lock: Path, tmp_path: Path, content: str) -> None:
    lock.write_text(content)
    heal_rwlock(tmp_path)
    assert not lock.exists()


def test_a_damaged_file_stays_while_dvc_works(lock: Path, tmp_path: Path, dvc: int) -> None:
    lock.write_text("")
    with pytest.raises(MaestroError, match=f"damaged while dvc is at work .process {dvc}."):
        heal_rwlock(tmp_path)
    assert lock.exists()


def test_only_entries_of_the_dead_go(lock: Path, tmp_path: Path, dvc: int) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    living, gone, other = ({"pid": pid, "cmd": "dvc repro"} for pid in (dvc, dead.pid, os.getpid()))
    lock.write_text(
        json.dumps({"write": {"a": living, "b": gone}, "read": {"c": [living, other], "d": [gone]}})
    )
    heal_rwlock(tmp_path)
    assert json.loads(lock.read_text()) == {"write": {"a": living}, "read": {"c": [living]}}
