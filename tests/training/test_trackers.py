"""TensorBoard and DVCLive, read back by their own readers."""

import csv
import json
import logging
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mae.errors import ParamsError
from mae.training.journal import Journal, read_journal

BOTH = ("tensorboard", "dvclive")


def write(journal: Journal, first: int, last: int, loss: float = 1.0) -> None:
    for step in range(first, last + 1, 10):
        journal.write({"step": step, "lr": 0.1, "loss": loss / step, "flop_utilisation": None})
        if step % 20 == 0:
            journal.observed(step, {"val_loss": 2.0 / step})


def in_tensorboard(folder: Path, name: str) -> dict[int, float]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def in_dvclive(folder: Path, name: str) -> dict[int, float]:
    with (folder / f"dvclive/plots/metrics/{name}.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    column = name.split("/")[-1]
    assert len({row["step"] for row in rows}) == len(rows)
    return {int(row["step"]): float(row[column]) for row in rows}


READERS = {"tensorboard": in_tensorboard, "dvclive": in_dvclive}


@pytest.mark.parametrize("name", BOTH)
def test_figures_and_observations_arrive(tmp_path: Path, name: str) -> None:
    journal = Journal(tmp_path, "train", 0, 100, trackers=(name,))
    write(journal, 10, 40)
    journal.close()
    read = READERS[name]
    assert read(tmp_path, "train/loss") == pytest.approx({s: 1 / s for s in (10, 20, 30, 40)})
    assert read(tmp_path, "train/lr") == pytest.approx(dict.fromkeys((10, 20, 30, 40), 0.1))
    assert read(tmp_path, "observed/val_loss") == pytest.approx({20: 0.1, 40: 0.05})


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("start", [0, 20])
def test_a_resumed_run_shows_each_step_once(tmp_path: Path, name: str, start: int) -> None:
    journal = Journal(tmp_path, "train", 0, 100, trackers=(name,))
    write(journal, 10, 60, loss=100.0)
    journal.flush()  # and no close: the process was killed
    journal = Journal(tmp_path, "train", start, 100, trackers=(name,))
    write(journal, start + 10, 40)
    journal.close()
    expected = {s: (100.0 if s <= start else 1.0) / s for s in (10, 20, 30, 40)}
    assert READERS[name](tmp_path, "train/loss") == pytest.approx(expected)


@pytest.mark.parametrize("name", BOTH)
def test_a_run_that_went_back_shows_where_it_went_on(tmp_path: Path, name: str) -> None:
    journal = Journal(tmp_path, "train", 0, 100, trackers=(name,))
    write(journal, 10, 60, loss=100.0)
    journal.rewind(30)
    write(journal, 40, 50)
    journal.close()
    expected = {10: 10.0, 20: 5.0, 30: 100 / 30, 40: 1 / 40, 50: 1 / 50}
    assert READERS[name](tmp_path, "train/loss") == pytest.approx(expected)


def test_dvclive_leaves_a_summary_that_dvc_reads(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "train", 0, 100, trackers=("dvclive",))
    write(journal, 10, 40)
    journal.close()
    summary = json.loads((tmp_path / "dvclive/metrics.json").read_text())
    assert summary["train"]["loss"] == 1 / 40
    assert summary["observed"]["val_loss"] == 2 / 40
    assert summary["step"] == 40


def test_dvclive_files_that_a_kill_cut_short_are_mended(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "train", 0, 100, trackers=("dvclive",))
    write(journal, 10, 40)
    journal.close()
    table = tmp_path / "dvclive/plots/metrics/train/loss.tsv"
    table.write_text(table.read_text() + "5")
    (tmp_path / "dvclive/metrics.json").write_text('{"train": {"lo')
    journal = Journal(tmp_path, "train", 40, 100, trackers=("dvclive",))
    write(journal, 50, 50)
    journal.close()
    assert list(in_dvclive(tmp_path, "train/loss")) == [10, 20, 30, 40, 50]


@pytest.fixture
def fresh_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Git repository without commits and without DVC, in a shell where DVC Studio is set up."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STUDIO_TOKEN", "not-a-token")
    monkeypatch.setenv("DVC_STUDIO_REPO_URL", "git@example.org:team/repo")
    monkeypatch.setenv("DVC_STUDIO_URL", "http://127.0.0.1:9")

    def no_network(*_: Any) -> None:
        pytest.fail("a tracker wanted to send something")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    return tmp_path


@pytest.mark.parametrize("under_dvc", [False, True])
def test_nothing_is_written_outside_the_run_or_sent(
    fresh_repository: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    under_dvc: bool,
) -> None:
    if under_dvc:  # as a stage of `dvc repro` finds it
        monkeypatch.setenv("DVC_ROOT", str(fresh_repository))
    before = sorted(fresh_repository.rglob("*"))
    run = fresh_repository / "runs/pretrain/0123"
    journal = Journal(run, "train", 0, 100, trackers=BOTH)
    write(journal, 10, 40)
    journal.rewind(20)
    journal.flush()
    journal.close()
    after = {path for path in fresh_repository.rglob("*") if not path.is_relative_to(run)}
    assert after - set(before) == {run.parent, run.parent.parent}
    assert sorted(path.name for path in run.iterdir()) == [
        "dvclive",
        "journal.jsonl",
        "tensorboard",
    ]
    assert not caplog.records
    assert list(in_dvclive(run, "train/loss")) == [10, 20]


@pytest.mark.parametrize("name", BOTH)
def test_an_absent_package_is_named_before_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ParamsError, match=rf"{name} is not installed.*maestro-mae\[trackers\]"):
        Journal(tmp_path, "train", 0, 100, trackers=(name,))


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="choose from tensorboard, dvclive"):
        Journal(tmp_path, "train", 0, 100, trackers=("abacus",))


@pytest.mark.parametrize("name", BOTH)
def test_a_tracker_that_cannot_begin_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (tmp_path / name).write_text("a file where the folder should be")
    journal = Journal(tmp_path, "train", 0, 100, trackers=(name,))
    write(journal, 10, 20)
    journal.close()
    assert len(read_journal(tmp_path)) == 2
    assert len(caplog.records) == 1
    assert f"{name} failed" in caplog.text


def test_a_tracker_that_fails_later_is_warned_of_once_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, "train", 0, 100, trackers=BOTH)
    write(journal, 10, 20)
    shutil.rmtree(tmp_path / "dvclive")
    (tmp_path / "dvclive").write_text("somebody tidied up")
    write(journal, 30, 60)
    journal.flush()
    journal.close()
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "dvclive failed, the run goes on without it" in warning.getMessage()
    assert len(read_journal(tmp_path)) == 6
    assert list(in_tensorboard(tmp_path, "train/loss")) == [10, 20, 30, 40, 50, 60]
