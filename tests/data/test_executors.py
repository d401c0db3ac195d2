"""Sharding on threads, processes, Dask and Ray: the same bytes, and nobody left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mae.data.sharding import executors, shards, workers
from mae.data.sharding.assembly import workspace_of
from mae.data.sharding.started import Started
from mae.data.sharding.workers import Workers
from mae.errors import DataError, ParamsError
from mae.params import ExecutorParams
from tests.data import zoo
from tests.data.trees import tree

ROOT = Path(__file__).parents[2]
MARK = "MAESTRO_TEST_SHARDING"

# Relative paths, so that a worker elsewhere has to come to this very folder.
_RUN = """
import signal, sys
from pathlib import Path
from mae.data.sharding import probing, run, workers
from mae.errors import MaestroError
from mae.params import ExecutorParams
from tests.data.zoo import data_params
probing._CHUNK = 20
workers.PATIENCE_SECONDS = 0
if __name__ == "__main__":
    out, kind, *address = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run.shard_dataset(
            *("images", data_params(images=Path("source"), shard_mb=1), 0, Path(out)),
            workers=2,
            executor=ExecutorParams(kind=kind, address=address[0] if address else None),
        )
    except MaestroError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(75)
"""

DASK = pytest.param("dask", marks=pytest.mark.slow)
CLUSTERS = [DASK, pytest.param("ray", marks=pytest.mark.slow)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with 240 images of noise that fill several shards of one megabyte."""
    (tmp_path / "source").mkdir()
    (tmp_path / "run.py").write_text(_RUN)
    random = np.random.default_rng(0)
    for number in range(240):
        noise = random.integers(0, 256, (80, 90, 1), dtype=np.uint8)
        (tmp_path / "source" / f"{number:04d}.png").write_bytes(zoo.png(noise))
    return tmp_path


def begin(place: Path, out: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "run.py", out, *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARK: str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def shard(place: Path, out: str, *arguments: str) -> dict[str, str]:
    process = begin(place, out, *arguments)
    said = "".join(process.communicate(timeout=540))
    assert process.returncode == 0, said
    return tree(place / out)


def processes_of(place: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(MARK) == str(place)
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def nobody_is_left(place: Path) -> bool:
    end = time.monotonic() + 120
    while processes_of(place) and time.monotonic() < end:
        time.sleep(0.1)
    return not processes_of(place)


# --- the same bytes ---------------------------------------------------------------------------


def test_threads_and_processes_give_the_same_bytes(place: Path) -> None:
    by_processes = shard(place, "processes", "processes")
    assert shard(place, "threads", "threads") == by_processes
    assert sum(name.startswith("train/") for name in by_processes) > 1
    assert nobody_is_left(place)


@pytest.mark.parametrize("kind", CLUSTERS)
def test_a_cluster_gives_the_bytes_of_threads(place: Path, kind: str) -> None:
    listening: set[str] = set()
    process = begin(place, kind, kind)
    while process.poll() is None:
        listening |= addresses_of(processes_of(place))
        time.sleep(0.1)
    said = "".join(process.communicate())
    assert process.returncode == 0, said
    assert tree(place / kind) == shard(place, "threads", "threads")
    assert listening and listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert nobody_is_left(place)


def addresses_of(processes: list[psutil.Process]) -> set[str]:
    found = set()
    for process in processes:
        try:
            connections = process.net_connections(kind="inet")
        except psutil.Error:
            continue
        found |= {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.parametrize("kind", CLUSTERS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_cluster_ends_with_the_run_which_then_goes_on(
    place: Path, kind: str, number: signal.Signals
) -> None:
    process = begin(place, "stopped", kind)
    workspace = place / ".stopped.partial"
    while process.poll() is None and len(list(workspace.glob("[!.]*.parquet"))) < 2:
        time.sleep(0.005)
    assert process.poll() is None and len(processes_of(place)) > 1
    if number is signal.SIGINT:  # as from a terminal: to all of them
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said = "".join(process.communicate(timeout=300))
    assert process.returncode == (-number if number is signal.SIGKILL else 75), said
    assert nobody_is_left(place)
    assert not list(Path("/tmp").glob(f"ray-*/session_*_{process.pid}"))
    assert shard(place, "stopped", kind) == shard(place, "whole", "threads")
    assert not workspace.exists()


@pytest.mark.slow
def test_a_running_scheduler_is_used_and_left_running(place: Path, tmp_path: Path) -> None:
    """Its workers are in a folder of their own, and work in ours."""
    from distributed import Client, LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        host="127.0.0.1",
        dashboard_address=None,
        silence_logs=50,
    ) as cluster:
        address = cluster.scheduler_address
        assert shard(place, "cluster", "dask", address) == shard(place, "threads", "threads")
        with Client(address) as client:
            assert set(client.run(os.getcwd).values()) == {str(place)}


# --- what goes wrong --------------------------------------------------------------------------


def double(number: int) -> int:
    return 2 * number


def refuse(number: int) -> int:
    raise DataError(f"{number} is refused")


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 0)


def crew(kind: Any, folder: Path, address: str | None = None) -> Workers:
    return Workers(ExecutorParams(kind=kind, address=address), 2, folder)


@pytest.mark.parametrize(
    "kind", ["threads", "processes", pytest.param("dask", marks=pytest.mark.slow)]
)
def test_results_and_errors_arrive_as_they_are(kind: str, tmp_path: Path, impatient: None) -> None:
    with crew(kind, tmp_path) as them:
        assert sorted(them.run_all(double, range(100))) == list(range(0, 200, 2))
        with pytest.raises(DataError, match="is refused") as caught:
            list(them.run_all(refuse, range(100)))
    assert type(caught.value) is DataError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["processes", DASK])
def test_a_worker_that_dies_is_told_of(kind: str, tmp_path: Path, impatient: None) -> None:
    with (
        pytest.raises(DataError, match="worker that was busy with images was lost"),
        crew(kind, tmp_path) as them,
    ):
        list(them.run_all(die, range(4)))


class AtOnce(Executor):
    """Has done a task as soon as it is given."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future


def test_no_more_is_handed_out_than_keeps_them_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    outstanding: list[int] = []
    waiting = workers.wait

    def counted(futures: set[Future[Any]], **options: Any) -> Any:
        outstanding.append(len(futures))
        first = next(iter(futures))
        return waiting([first], **options).done, futures - {first}

    monkeypatch.setattr(workers, "wait", counted)
    one = Started(AtOnce(), slots=20)
    done = workers._done(one, double, workers.deque(range(1000)))
    assert sorted(done) == list(range(0, 2000, 2))
    assert max(outstanding) == 80
    few = workers._done(replace(one, slots=0), double, workers.deque(range(1000)))
    outstanding.clear()
    assert len(list(few)) == 1000 and max(outstanding) == 64


def test_what_cannot_start_names_the_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(executors, "_SECONDS_TO_ANSWER", 1)
    with socket.socket() as unheard:  # bound and not listening: nobody else can take it
        unheard.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(ParamsError, match=f"{address}, where no Dask scheduler answers"):
            list(crew("dask", tmp_path, address).run_all(double, range(4)))
        with pytest.raises(ParamsError, match=f"{address}, where no Ray cluster answers"):
            list(crew("ray", tmp_path, address).run_all(double, range(4)))
    with pytest.raises(ParamsError, match=r"address is for dask and ray, and kind is threads"):
        list(crew("threads", tmp_path, "127.0.0.1:1").run_all(double, range(4)))
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    for kind in ("dask", "ray"):
        with pytest.raises(ParamsError, match=rf"pip install 'maestro-mae\[{kind}\]'"):
            list(crew(kind, tmp_path).run_all(double, range(4)))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[workers._Home]:
    before = Path.cwd()
    (tmp_path / "beacon").touch()
    versions = tuple(workers.made_with().items())
    yield workers._Home("head", tmp_path, tmp_path / "beacon", versions)
    os.chdir(before)


def test_a_worker_on_another_file_system_is_refused(home: workers._Home) -> None:
    home.enter()
    assert Path.cwd() == home.folder
    home.beacon.unlink()
    with pytest.raises(DataError, match=f"does not see {home.folder} of head"):
        home.enter()


@pytest.mark.parametrize("name", ["this code", "pillow"])
def test_a_worker_with_other_versions_is_refused(home: workers._Home, name: str) -> None:
    versions = dict(home.made_with) | {name: "0.0"}
    with pytest.raises(DataError, match=f"has {name} .*, and head 0.0: install the same"):
        replace(home, made_with=tuple(versions.items())).enter()


# --- one shard, two writers -------------------------------------------------------------------


def test_a_shard_given_to_a_second_worker_comes_out_whole(tmp_path: Path) -> None:
    """As when a cluster takes a worker for dead that is only slow."""
    path, alone = tmp_path / "twice.mdb", tmp_path / "alone.mdb"
    images = [bytes([number]) * 3000 for number in range(40)]
    with shards.ShardWriter(path, 1 << 20) as slow:
        slow.put(images[0], b"{}")
        for target in (path, alone):
            with shards.ShardWriter(target, 1 << 20) as quick:
                for image in images:
                    quick.put(image, b"{}")
        written = path.read_bytes()
        for image in images[1:]:
            slow.put(image, b"{}")
    assert path.read_bytes() == written == alone.read_bytes()
    assert {one.name for one in tmp_path.iterdir()} == {"twice.mdb", "alone.mdb"}


def test_what_a_killed_run_half_wrote_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), workspace_of(tmp_path / "out") as workspace:
        for name in ("shard-1.raw", "shard-1.tmp", ".probe.parquet.7.tmp", "probe-a.parquet"):
            (workspace / name).touch()
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), workspace_of(tmp_path / "out") as workspace:
        assert {one.name for one in workspace.iterdir()} == {"lock", "probe-a.parquet"}
        raise KeyboardInterrupt
