"""Kills, signals and lost processes: the run ends with the weights of one that nothing befell."""

import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mae.errors import DivergedError, Interrupted
from mae.training import checkpoints
from mae.training.checkpoints import Checkpoints
from mae.training.devices import joined
from mae.training.journal import read_journal, read_observed
from mae.training.numerics import Numerics
from tests.ports import free_port
from tests.training.conftest import make_trainer
from tests.training.kills import PLACES, Kill, Observer, Rank, arm, ended, start

STEPS = 160
PER_EPOCH = 4
EXACT = ("step", "epoch", "lr", "loss", "absolute", "grad_norm")


def _train_plane(folder: str, rank: Rank, kill: Kill | None, minutes: float) -> None:
    rank.settle()
    with joined("cpu") as place:
        trainer = make_trainer(
            Path(folder),
            place,
            epochs=STEPS // PER_EPOCH,
            numerics=Numerics(ema=0.9),
            observe=lambda _: Observer().look(trainer.task),
            runtime={
                "checkpoint_minutes": minutes,
                "observe": {"every_epochs": 1, "images": 1, "knn": False},
            },
        )
        arm(kill)
        try:
            trainer.run()
        except Interrupted as stop:
            sys.exit(stop.exit_code)
        save_file(dict(trainer.task.state_dict()), f"{folder}/weights-{rank.rank}.safetensors")


def train_plane(folder: Path, kill: Kill | None = None, minutes: float = 1.0) -> int | None:
    return ended(start(_train_plane, str(folder), Rank(), kill, minutes))


# --- one process ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing befell."""
    folder = tmp_path_factory.mktemp("untouched")
    assert train_plane(folder) == 0
    return folder


def assert_the_same_run(folder: Path, other: Path, rank: int = 0) -> None:
    """Weights, journal and observations are the same to the bit, and nothing else is left."""
    ours, theirs = (load_file(f / f"weights-{rank}.safetensors") for f in (folder, other))
    assert ours.keys() == theirs.keys() != set()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    lines = [
        [{key: line[key] for key in EXACT} for line in read_journal(f)] for f in (folder, other)
    ]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == list(
        range(4, STEPS + 1, 4)
    )
    assert read_observed(folder) == read_observed(other) != []
    assert all(f.name.startswith("step-") for f in (folder / "checkpoints").iterdir())


def ten_kills() -> list[tuple[Kill, float]]:
    """Ten places, a moment of the clock among them, in an order and after times drawn at random;
    with a checkpoint at every step, and with some steps between them to be lost."""
    draw = random.Random(20)
    places = list(PLACES)[:10]
    counts = {"time": 60}
    kills = [Kill(place, counts.get(place, draw.randint(2, 9))) for place in places]
    draw.shuffle(kills)
    return [(kill, draw.choice([1e-9, 1e-4])) for kill in kills]


def test_ten_kills_in_one_run_change_nothing(tmp_path: Path, untouched: Path) -> None:
    kills = ten_kills()
    assert len(kills) == 10
    progress = []
    for kill, minutes in kills:
        assert train_plane(tmp_path, kill, minutes) == -signal.SIGKILL, kill
        progress.append(Checkpoints(tmp_path / "checkpoints", "plane", 2).newest_step() or 0)
    # It went on each time from where it was, and had not ended before the last kill.
    assert progress == sorted(progress) and len(set(progress)) > 5 and progress[-1] < STEPS
    assert train_plane(tmp_path) == 0
    assert_the_same_run(tmp_path, untouched)


@pytest.mark.parametrize("place", ["rename", "prune", "tensors"])
def test_killed_again_and_again_in_the_same_place(
    tmp_path: Path, untouched: Path, place: str
) -> None:
    """Half-written states and half-removed ones do not heap up, whatever their number."""
    for count in (3, 1, 2):
        assert train_plane(tmp_path, Kill(place, count), 1e-9) == -signal.SIGKILL
    hidden = [f for f in (tmp_path / "checkpoints").iterdir() if f.name.startswith(".")]
    assert len(hidden) <= 1
    assert train_plane(tmp_path) == 0
    assert_the_same_run(tmp_path, untouched)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_stop_after_the_step_with_the_state_saved(
    tmp_path: Path, untouched: Path, number: signal.Signals
) -> None:
    for place, done in (("backward", 13), ("average", 26)):
        assert train_plane(tmp_path, Kill(place, 13, number)) == 75
        assert stopped_at(tmp_path) == done
    assert train_plane(tmp_path) == 0
    assert_the_same_run(tmp_path, untouched)


def stopped_at(folder: Path) -> int | None:
    return Checkpoints(folder / "checkpoints", "plane", 2).newest_step()


def _save_and_end(folder: str) -> None:
    write = checkpoints.save_file

    def slowly(*arguments: Any) -> None:
        time.sleep(0.3)
        write(*arguments)

    setattr(checkpoints, "save_file", slowly)  # noqa: B010
    kept = Checkpoints(Path(folder), "mine", 1)
    kept.save(checkpoints.Progress(4, {}), {"weights": {"w": torch.ones(3)}})
    sys.exit(5)


def test_a_process_that_ends_finishes_the_write(tmp_path: Path) -> None:
    assert ended(start(_save_and_end, str(tmp_path))) == 5
    assert Checkpoints(tmp_path, "mine", 1).newest_step() == 4


def _diverge(folder: str, kill: Kill | None) -> None:
    """Steps 20 to 23 never come to good: the run goes back twice, and gives up."""
    Rank().settle()
    poison = {(step, 0): float("nan") for step in range(20, 24)}
    trainer = make_trainer(Path(folder), poison=poison, divergence={})
    arm(kill)
    try:
        trainer.run()
    except DivergedError as end:
        sys.exit(end.exit_code)


def test_killed_while_it_goes_back(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert ended(start(_diverge, str(whole), None)) == 5
    for place in ("return", "returned", "return"):
        assert ended(start(_diverge, str(killed), Kill(place, 1))) == -signal.SIGKILL
    assert ended(start(_diverge, str(killed), None)) == 5
    ours, theirs = (Checkpoints(f / "checkpoints", "plane", 2).restore() for f in (killed, whole))
    assert ours is not None and theirs is not None
    assert ours.progress == theirs.progress and ours.progress.step == 20
    for group, members in theirs.tensors.items():
        for name, tensor in members.items():
            assert torch.equal(ours.tensors[group][name], tensor)


# --- two processes --------------------------------------------------------------------------


def train_in_two(
    folder: Path, port: int, kills: tuple[Kill | None, Kill | None] = (None, None)
) -> list[int | None]:
    """Run two processes to the end of both, as a launcher does: when one has died, the other
    does not stay."""
    pair = [
        start(_train_plane, str(folder), Rank(rank, 2, port), kills[rank], 1e-3) for rank in (0, 1)
    ]
    while all(process.is_alive() for process in pair):
        time.sleep(0.01)
    return [ended(process) for process in pair]


@pytest.fixture(scope="module")
def untouched_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    port = free_port()
    assert train_in_two(folder, port) == [0, 0]
    return folder


def test_two_processes_survive_the_loss_of_both_and_of_one(
    tmp_path: Path, untouched_pair: Path, free_port: int
) -> None:
    both = Kill("forward", 30)
    first, second = train_in_two(tmp_path, free_port, (both, both))
    assert first == second == -signal.SIGKILL
    saves = Kill("tensors", 3)  # the first process writes; the second one is left without it
    first, second = train_in_two(tmp_path, free_port, (saves, None))
    assert first == -signal.SIGKILL and second not in (0, None)
    first, second = train_in_two(tmp_path, free_port, (None, Kill("backward", 20)))
    assert second == -signal.SIGKILL and first not in (0, None)
    assert 0 < (stopped_at(tmp_path) or 0) < STEPS
    assert train_in_two(tmp_path, free_port) == [0, 0]
    for rank in (0, 1):
        assert_the_same_run(tmp_path, untouched_pair, rank)


def test_a_signal_to_one_of_two_stops_both(
    tmp_path: Path, untouched_pair: Path, free_port: int
) -> None:
    asked = Kill("backward", 30, signal.SIGTERM)
    assert train_in_two(tmp_path, free_port, (None, asked)) == [75, 75]
    assert stopped_at(tmp_path) in (30, 31)
    assert train_in_two(tmp_path, free_port) == [0, 0]
    assert_the_same_run(tmp_path, untouched_pair)
