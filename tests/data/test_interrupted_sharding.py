"""Killed, starved of disk or raced: nothing half-written counts, nothing done is lost."""

import fcntl
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest

from mae.data.records import Inline, Record, Source
from mae.data.sharding import assembly
from mae.data.sharding import run as sharding
from mae.data.sharding.run import shard_dataset
from mae.errors import DataError
from tests.data import zoo
from tests.data.trees import tree

_RUN = """
import sys
from pathlib import Path
from mae.data.sharding import probing, run as sharding
from mae.data.sharding import workers as processes
from mae.errors import MaestroError
from tests.data.zoo import data_params
probing._CHUNK = 40
processes.PATIENCE_SECONDS = 0
if __name__ == "__main__":
    source, out, workers = sys.argv[1:4]
    try:
        sharding.shard_dataset(
            *("images", data_params(images=Path(source), shard_mb=1), 0, Path(out)),
            workers=int(workers),
        )
    except MaestroError as error:
        sys.exit(str(error))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "run.py"
    path.write_text(_RUN)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder of 400 images of noise that fill several shards of one megabyte."""
    folder = tmp_path / "source"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(400):
        noise = random.integers(0, 256, (60, 70, 1), dtype=np.uint8)
        (folder / f"{number:04d}.png").write_bytes(zoo.png(noise))
    return folder


def command(script: Path, source: Path, out: Path, workers: int) -> list[str]:
    return [sys.executable, str(script), str(source), str(out), str(workers)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_bytes_do_not_depend_on_the_number_of_workers(
    script: Path, source: Path, tmp_path: Path
) -> None:
    for workers in (1, 2, 4):
        run = command(script, source, tmp_path / str(workers), workers)
        subprocess.run(run, check=True, env=ENVIRONMENT)
    trees = [tree(tmp_path / name) for name in "124"]
    assert trees[0] == trees[1] == trees[2]
    assert sum(name.startswith("train/") for name in trees[0]) > 2


def test_killed_five_times_ends_with_the_same_bytes(
    script: Path, source: Path, tmp_path: Path
) -> None:
    subprocess.run(command(script, source, tmp_path / "clean", 2), check=True, env=ENVIRONMENT)
    out = tmp_path / "killed"
    workspace = tmp_path / ".killed.partial"
    found: list[set[str]] = []
    for number in range(5):
        process = subprocess.Popen(command(script, source, out, 2), env=ENVIRONMENT)
        # Each time a little further: until so many finished pieces lie in the workspace.
        while process.poll() is None and len(pieces(workspace)) <= 2 * number:
            time.sleep(0.005)
        helpers = descendants(process)
        process.kill()
        process.wait()
        psutil.wait_procs(helpers, timeout=20)
        assert not [one for one in helpers if one.is_running()]
        found.append(pieces(workspace))
        if out.exists():  # it was quicker than the kill
            break
    assert len(found) > 2
    assert all(before <= after for before, after in pairwise(found[:-1]))
    subprocess.run(command(script, source, out, 2), check=True, env=ENVIRONMENT)
    assert tree(out) == tree(tmp_path / "clean")
    assert not workspace.exists()


def pieces(workspace: Path) -> set[str]:
    if not workspace.exists():
        return set()
    return {path.name for path in workspace.glob("[!.]*.parquet")}


@pytest.mark.parametrize("moment", ["before", "between"])
def test_killed_while_it_exchanges_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A kill between the two renames leaves the dataset before in the workspace."""
    zoo.write_images(tmp_path / "source", 40)
    params = zoo.data_params(images=tmp_path / "source")
    shard_dataset("images", params, 0, tmp_path / "out")
    before = tree(tmp_path / "out")
    zoo.write_images(tmp_path / "source" / "more", 10)
    real = Path.rename

    def stop(self: Path, target: Path) -> Path:
        if (self.name == "out") == (moment == "before"):
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        shard_dataset("images", params, 0, tmp_path / "out")
    monkeypatch.undo()
    assert (tmp_path / "out").exists() == (moment == "before")
    shard_dataset("images", params, 0, tmp_path / "out")
    after = tree(tmp_path / "out")
    assert {name: after[name] for name in before if name.endswith(".mdb")}.items() <= before.items()


def test_a_full_disk_is_an_error_and_the_work_is_kept(
    script: Path, source: Path, tmp_path: Path
) -> None:
    """No file may grow beyond half a megabyte: what a full disk does to a shard of one."""
    run = command(script, source, tmp_path / "out", 1)
    limited = ["bash", "-c", 'ulimit -f 512; exec "$@"', "bash", *run]
    ended = subprocess.run(limited, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert ended.returncode == 1
    assert "could not be written" in ended.stderr
    assert "run again; the shards that are finished are kept" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()
    assert pieces(tmp_path / ".out.partial")
    assert not list((tmp_path / ".out.partial").glob("*.raw"))
    subprocess.run(run, check=True, env=ENVIRONMENT)
    subprocess.run(command(script, source, tmp_path / "clean", 1), check=True, env=ENVIRONMENT)
    assert tree(tmp_path / "out") == tree(tmp_path / "clean")


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    zoo.write_images(tmp_path / "source", 20)
    with (
        assembly.workspace_of(tmp_path / "out"),
        pytest.raises(DataError, match="another process is sharding"),
    ):
        shard_dataset("images", zoo.data_params(images=tmp_path / "source"), 0, tmp_path / "out")


def test_an_image_that_changes_while_it_is_read_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Restless(Inline):
        def read(self) -> bytes:
            object.__setattr__(self, "turn", getattr(self, "turn", 0) + 1)
            return zoo.png(zoo.pattern(20, 20, 1, seed=self.turn))

    records = [Record("a", Restless(b""), split="train")]
    monkeypatch.setattr(sharding, "open_source", lambda *_: Source(iter(records), "a test"))
    with pytest.raises(DataError, match="a changed while its source was read"):
        shard_dataset("images", zoo.data_params(), 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    with (tmp_path / ".out.partial" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    zoo.write_images(tmp_path / "source", 20)
    info = shard_dataset("images", zoo.data_params(images=tmp_path / "source"), 0, tmp_path / "out")
    assert info.accepted == 20
