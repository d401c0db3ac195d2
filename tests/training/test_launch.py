"""Launching: who is started, what becomes of exit codes, restarts and signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mae.errors import Interrupted, MaestroError, ParamsError
from mae.params import LaunchParams, read_params
from mae.training.launch import ProcessFailed, check_shares, launch_if_wanted
from tests.training.conftest import ROOT

# What a process does is a few lines without torch, so that starting it costs nothing.
WORKER = """
import os, signal, sys, time
from pathlib import Path
rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
here = Path({here!r})
(here / f"started-{{attempt}}-{{rank}}").write_text(" ".join(sys.argv[1:]))
{body}
"""


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give back the signal handlers and the environment that launching changes."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    environment = dict(os.environ)
    monkeypatch.delenv("RANK", raising=False)
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)


def params(**changes: Any) -> LaunchParams:
    values: dict[str, Any] = {
        "processes": 2,
        "nodes": 1,
        "rendezvous": None,
        "restarts": 0,
        "sharding": "ddp",
    }
    return LaunchParams(**(values | changes))


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Launch a module with the given body, in this very process."""

    def launched(body: str, *arguments: str, **changes: Any) -> bool:
        (tmp_path / "worker.py").write_text(WORKER.format(here=str(tmp_path), body=body))
        monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
        return launch_if_wanted(params(**changes), "worker", list(arguments), device="cpu")

    return launched


def started(folder: Path) -> list[str]:
    """Return attempt and rank of every process that was started."""
    return sorted(file.name.removeprefix("started-") for file in folder.glob("started-*"))


# --- who is started ------------------------------------------------------------------------------


def test_every_process_runs_the_module(launch: Callable[..., bool], tmp_path: Path) -> None:
    body = """(here / f"world-{rank}").write_text(os.environ["WORLD_SIZE"])"""
    assert launch(body, "knn", processes=3)
    assert started(tmp_path) == ["0-0", "0-1", "0-2"]
    assert (tmp_path / "started-0-2").read_text() == "knn"
    assert (tmp_path / "world-1").read_text() == "3"


def test_one_process_does_the_work_itself() -> None:
    assert not launch_if_wanted(params(processes=1), "no.such.module", [])


def test_nothing_is_launched_within_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert not launch_if_wanted(params(processes=8), "no.such.module", [])


def test_nothing_is_left_behind(
    launch: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert launch("")
    assert list(temporary.iterdir()) == []


# --- what is refused before anything starts ------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 2}, "2 nodes need a rendezvous, as in 'host-1:29400'"),
        ({"nodes": 2, "rendezvous": "host:many"}, "write it as host:port"),
    ],
)
def test_a_rendezvous_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        launch_if_wanted(params(**changes), "no.such.module", [], device="cpu")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ParamsError, match="4 processes on a node with 2 GPUs"):
        launch_if_wanted(params(processes=4), "no.such.module", [], device=device)


def test_a_gpu_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ParamsError, match="torch sees no GPU"):
        launch_if_wanted(params(), "no.such.module", [], device="cuda")


def test_a_batch_that_cannot_be_cut() -> None:
    learns = read_params(ROOT / "params.yaml").pretrain.model_copy(update={"batch": 64})
    with pytest.raises(ParamsError, match="pretrain: a batch of 64 images cannot be cut into 3 "):
        launch_if_wanted(
            params(processes=3), "pipelines.stages.pretrain", [], device="cpu", learns=learns
        )
    check_shares("pretrain", 64, processes=4, accumulate=8)
    with pytest.raises(ParamsError, match="choose a multiple of 48"):
        check_shares("pretrain", 64, processes=4, accumulate=12)


# --- exit codes and restarts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "carried"),
    [
        ((5, 5), 5),
        ((1, 3), 3),  # the one that lost its peer is not the one that explains
        ((0, 9), 9),
    ],
)
def test_the_exit_code_that_explains_is_carried(
    launch: Callable[..., bool], codes: tuple[int, int], carried: int
) -> None:
    with pytest.raises(ProcessFailed, match=f"ended with code {carried}") as failure:
        launch(f"sys.exit({codes}[int(rank)])")
    assert failure.value.exit_code == carried


def test_a_killed_process_is_named(launch: Callable[..., bool]) -> None:
    with pytest.raises(ProcessFailed, match="process 1 of worker ended with signal SIGKILL") as e:
        launch("if rank == '1': os.kill(os.getpid(), 9)\ntime.sleep(30)")
    assert e.value.exit_code == 1


def test_what_crashed_is_started_again(launch: Callable[..., bool], tmp_path: Path) -> None:
    body = """
(here / f"port-{attempt}-{rank}").write_text(os.environ["MASTER_PORT"])
if attempt == "0": os.kill(os.getpid(), 9)
"""
    assert launch(body, restarts=2)
    assert started(tmp_path) == ["0-0", "0-1", "1-0", "1-1"]
    # A store that both attempts shared would hand the second the addresses of the first.
    ports = [(tmp_path / f"port-{attempt}-0").read_text() for attempt in (0, 1)]
    assert ports[0] != ports[1]


def test_restarts_are_counted(launch: Callable[..., bool], tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="ended with code 1"):
        launch("sys.exit(1)", restarts=1)
    assert started(tmp_path) == ["0-0", "0-1", "1-0", "1-1"]


@pytest.mark.parametrize("code", [2, 5, 75])
def test_what_ended_on_purpose_is_not_started_again(
    launch: Callable[..., bool], tmp_path: Path, code: int
) -> None:
    with pytest.raises(MaestroError) as failure:
        launch(f"sys.exit({code})", restarts=3)
    assert failure.value.exit_code == code
    assert isinstance(failure.value, Interrupted) == (code == 75)
    assert started(tmp_path) == ["0-0", "0-1"]


# --- signals -------------------------------------------------------------------------------------

LAUNCHER = """
import sys
from mae.errors import MaestroError
from mae.params import LaunchParams
from mae.training import launch
launch.GRACE_SECONDS = {grace}
wanted = LaunchParams(restarts=3, sharding="ddp", **{wanted})
try:
    launch.launch_if_wanted(wanted, "worker", [], device="cpu")
except MaestroError as error:
    print(error)
    sys.exit(error.exit_code)
"""
SAVES = """
def save(*_):
    time.sleep({seconds})
    (here / f"saved-{{rank}}").touch()
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, save)
(here / f"ready-{{rank}}").touch()
time.sleep(60)
"""


def wait_for(folder: Path, pattern: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline, f"{pattern} did not come"
        time.sleep(0.05)


TWO_PROCESSES = {"processes": 2, "nodes": 1, "rendezvous": None}


def begin(
    folder: Path, worker: str, grace: int = 60, wanted: dict[str, Any] = TWO_PROCESSES
) -> "subprocess.Popen[str]":
    (folder / "worker.py").write_text(WORKER.format(here=str(folder), body=worker))
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER.format(grace=grace, wanted=wanted)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_a_signal_reaches_every_process(tmp_path: Path, number: signal.Signals) -> None:
    process = begin(tmp_path, SAVES.format(seconds=1))
    wait_for(tmp_path, "ready-*", 2)
    process.send_signal(number)
    message, _ = process.communicate(timeout=60)
    assert process.returncode == Interrupted.exit_code
    assert f"all processes stopped by {number.name}: run the same command again" in message
    assert len(list(tmp_path.glob("saved-*"))) == 2
    assert started(tmp_path) == ["0-0", "0-1"]


@pytest.mark.slow
def test_the_grace_to_save_is_ours_to_set(tmp_path: Path) -> None:
    process = begin(tmp_path, SAVES.format(seconds=20), grace=1)
    wait_for(tmp_path, "ready-*", 2)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == Interrupted.exit_code
    assert not list(tmp_path.glob("saved-*"))  # killed after a second


def test_processes_do_not_outlive_their_launcher(tmp_path: Path) -> None:
    joins = "from mae.training.launch import launch_if_wanted\nlaunch_if_wanted(None, '', [])\n"
    process = begin(tmp_path, joins + SAVES.format(seconds=0))
    wait_for(tmp_path, "ready-*", 2)
    process.kill()
    process.communicate(timeout=60)
    wait_for(tmp_path, "saved-*", 2)


@pytest.mark.parametrize("code", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_two_nodes_meet_and_end_alike(tmp_path: Path, free_port: int, code: int) -> None:
    wanted = {"processes": 1, "nodes": 2, "rendezvous": f"localhost:{free_port}"}
    nodes = [begin(tmp_path, f"sys.exit({code})", wanted=wanted) for _ in range(2)]
    for node in nodes:
        node.communicate(timeout=120)
    assert [node.returncode for node in nodes] == [code, code]
    assert started(tmp_path) == ["0-0", "0-1"]


# --- training ------------------------------------------------------------------------------------

TRAINS = """
import torch
from mae.training.devices import joined
from tests.training.conftest import make_trainer, weights

torch.set_num_threads(1)
with joined("cpu", {sharding!r}) as place:
    trainer = make_trainer(here / "run", place, runtime={{"checkpoint_minutes": {minutes}}})
    take_step = trainer._train_step

    def eventful(step, batch):
        take_step(step, batch)
        if step == 16 and not (here / "happened").exists() and rank == "1":
            (here / "happened").touch()
            {event}

    trainer._train_step = eventful
    try:
        trainer.run()
    except Exception as error:
        sys.exit(getattr(error, "exit_code", 1))
    whole = make_trainer(None, place)
    whole.run()
    torch.save([weights(trainer), weights(whole)], here / f"weights-{{rank}}.pt")
"""


def assert_nothing_was_lost(folder: Path) -> None:
    interrupted, whole = torch.load(folder / "weights-0.pt")
    assert torch.equal(interrupted, whole)
    assert all(map(torch.equal, torch.load(folder / "weights-1.pt"), (interrupted, whole)))


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_run_goes_on_after_a_process_was_killed(
    launch: Callable[..., bool], tmp_path: Path, sharding: str
) -> None:
    body = TRAINS.format(sharding=sharding, minutes=1e-9, event="os.kill(os.getpid(), 9)")
    assert launch(body, restarts=1)
    assert started(tmp_path) == ["0-0", "0-1", "1-0", "1-1"]
    assert_nothing_was_lost(tmp_path)


@pytest.mark.slow
def test_a_signal_saves_within_two_steps(tmp_path: Path) -> None:
    event = "os.kill(os.getppid(), signal.SIGTERM); time.sleep(2)"
    body = TRAINS.format(sharding="ddp", minutes=1e9, event=event)
    first = begin(tmp_path, body)
    message, _ = first.communicate(timeout=300)
    assert (first.returncode, message.count("SIGTERM")) == (Interrupted.exit_code, 1)
    steps = [int(folder.name[5:]) for folder in (tmp_path / "run/checkpoints").glob("step-*")]
    assert 17 <= max(steps) <= 19
    second = begin(tmp_path, body)
    second.communicate(timeout=300)
    assert second.returncode == 0
    assert_nothing_was_lost(tmp_path)
