"""The journal's files through resumption, rewinding, kills and a full disk; and its progress."""

import csv
import io
import json
import logging
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mae.errors import MaestroError
from mae.training import journal as journal_module
from mae.training.journal import (
    Journal,
    duration,
    in_words,
    journal_file,
    read_events,
    read_journal,
    read_observed,
    write_loss_curve,
    write_observed,
)


def interval(step: int, loss: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": step // 40, "lr": 1e-3, "loss": loss / step, **more}


def write_steps(journal: Journal, first: int, last: int) -> None:
    """Interval lines every 10 steps, observations every 20."""
    for step in range(first, last + 1):
        journal.advance()
        if step % 10 == 0:
            journal.write(interval(step))
        if step % 20 == 0:
            journal.observed(step, {"val_loss": 2.0 / step, "rank": float(step)})


def steps(lines: list[dict[str, Any]]) -> list[int]:
    return [line["step"] for line in lines]


def test_each_kind_of_line_is_read_back_by_itself(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "train", 0, 100)
    write_steps(journal, 1, 40)
    journal.event(33, "skipped", reason="the loss became nan", folder="incidents/step-0000033")
    journal.flush()
    journal.close()
    assert read_journal(tmp_path) == [interval(step) for step in (10, 20, 30, 40)]
    assert read_observed(tmp_path) == [
        {"step": step, "val_loss": 2.0 / step, "rank": float(step)} for step in (20, 40)
    ]
    (event,) = read_events(tmp_path)
    assert (event["step"], event["event"]) == (33, "skipped")
    assert event["folder"] == "incidents/step-0000033"
    for line in journal_file(tmp_path).read_text().splitlines():
        assert "step" in json.loads(line)


def test_a_resumed_run_has_the_journal_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    journal = Journal(whole, "train", 0, 100)
    write_steps(journal, 1, 100)
    journal.close()
    for start, stop in ((0, 70), (50, 65), (50, 100)):
        journal = Journal(resumed, "train", start, 100)
        write_steps(journal, start + 1, stop)
        journal.event(stop, "interrupted")
        journal.close()
    assert read_journal(resumed) == read_journal(whole)
    assert read_observed(resumed) == read_observed(whole)
    assert steps(read_events(resumed)) == [100]


def test_every_process_has_its_own_file_and_those_gone_are_cut_too(tmp_path: Path) -> None:
    for rank in (0, 1, 2):
        journal = Journal(tmp_path, "train", 0, 100, rank=rank)
        for step in (10, 20, 30):
            journal.write(interval(step, loss=rank + 1.0))
        journal.close()
    assert [line["loss"] for line in read_journal(tmp_path, rank=2)] == [0.3, 0.15, 0.1]
    assert steps(read_journal(tmp_path)) == [10, 20, 30]
    # One process goes on where three were.
    Journal(tmp_path, "train", 20, 100).close()
    assert [steps(read_journal(tmp_path, rank)) for rank in (0, 1, 2)] == [[10, 20]] * 3


def test_a_follower_leaves_the_files_of_others_alone(tmp_path: Path) -> None:
    for rank in (0, 1):
        Journal(tmp_path, "train", 0, 100, rank=rank).write(interval(50))
    Journal(tmp_path, "train", 20, 100, rank=1).close()
    assert steps(read_journal(tmp_path)) == [50]
    assert read_journal(tmp_path, rank=1) == []


def test_going_back_drops_figures_and_keeps_events(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "train", 0, 100)
    write_steps(journal, 1, 60)
    journal.event(57, "skipped", reason="the loss became nan")
    journal.rewind(40)
    journal.event(40, "rewound", diverged_at=60)
    write_steps(journal, 41, 50)
    journal.close()
    assert steps(read_journal(tmp_path)) == [10, 20, 30, 40, 50]
    assert steps(read_observed(tmp_path)) == [20, 40]
    assert [event["event"] for event in read_events(tmp_path)] == ["skipped", "rewound"]
    # After a kill the run goes on from where it had gone back to, and still knows that it had.
    Journal(tmp_path, "train", 40, 100).close()
    assert read_events(tmp_path) == [{"step": 40, "event": "rewound", "diverged_at": 60}]


@given(cut=st.integers(0, 600), start=st.integers(0, 8))
def test_a_journal_cut_anywhere_is_read_and_continued(
    tmp_path_factory: pytest.TempPathFactory, cut: int, start: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    lines = [json.dumps({"step": step, "loss": 1.0 / step, "lr": 0.1}) for step in range(1, 9)]
    content = "\n".join(lines) + "\n"
    journal_file(folder).write_text(content[:cut])
    complete = [
        json.loads(line)
        for index, line in enumerate(lines)
        if len("\n".join(lines[: index + 1])) <= cut
    ]
    assert read_journal(folder) == complete
    journal = Journal(folder, "train", start, 100)
    journal.write({"step": 9, "loss": 0.5, "lr": 0.1})
    journal.close()
    expected = [line for line in complete if line["step"] <= start]
    assert read_journal(folder)[:-1] == expected
    assert read_journal(folder)[-1]["step"] == 9


def test_a_killed_process_leaves_lines_that_can_be_read(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from mae.training.journal import Journal
journal = Journal(Path({str(tmp_path)!r}), "train", 0, 10**9)
for step in range(1, 10**9):
    journal.write({{"step": step, "loss": 1.0 / step, "lr": 0.1}})
    if step == 50:
        print("go", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    lines = read_journal(tmp_path)
    assert len(lines) >= 50
    assert steps(lines) == list(range(1, len(lines) + 1))


def test_a_full_disk_is_warned_of_once_and_costs_only_the_lines_of_that_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, "train", 0, 100)
    journal.write(interval(10))
    written = journal_file(tmp_path).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for half a line: what is left of it must not spoil the next one.
    resource.setrlimit(resource.RLIMIT_FSIZE, (written + 20, hard))
    try:
        for step in (20, 30):
            journal.write(interval(step))
        journal.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal_file(tmp_path).stat().st_size > written
    journal.write(interval(40))
    journal.close()
    assert steps(read_journal(tmp_path)) == [10, 40]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(tmp_path) in warning.getMessage()


def test_a_folder_that_cannot_be_written_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(MaestroError, match="run cannot be written"):
        Journal(tmp_path / "run", "train", 0, 100)


def test_numbers_of_torch_and_numpy_and_those_that_are_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "train", 0, 100)
    journal.write(
        {
            "step": 10,
            "loss": torch.tensor(0.5),
            "lr": np.float32(0.25),
            "grad_norm": float("inf"),
            "wait_share": float("nan"),
            "flop_utilisation": None,
        }
    )
    journal.observed(10, {"knn": np.float64(0.75), "val_loss": float("nan")})
    journal.close()
    (line,) = read_journal(tmp_path)
    assert line == {
        "step": 10,
        "loss": 0.5,
        "lr": 0.25,
        "grad_norm": None,
        "wait_share": None,
        "flop_utilisation": None,
    }
    assert read_observed(tmp_path) == [{"step": 10, "knn": 0.75, "val_loss": None}]


def test_curves_as_csv(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "train", 0, 40)
    journal.observed(0, {"val_loss": 1.5})
    journal.write(interval(10, images_per_second=812.5))
    journal.observed(20, {"val_loss": 0.5, "knn": 0.9})
    journal.close()
    write_loss_curve(tmp_path, tmp_path / "loss.csv")
    assert (tmp_path / "loss.csv").read_text().splitlines() == [
        "step,epoch,loss,lr",
        "10,0,0.1,0.001",
    ]
    write_observed(tmp_path, tmp_path / "observed.csv")
    with (tmp_path / "observed.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"step": "0", "val_loss": "1.5", "knn": ""},
            {"step": "20", "val_loss": "0.5", "knn": "0.9"},
        ]
    write_observed(tmp_path / "no run", tmp_path / "nothing.csv")
    assert (tmp_path / "nothing.csv").read_text().splitlines() == ["step"]


def test_without_a_folder_nothing_is_written_or_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    journal = Journal(None, "train", 0, 40, trackers=("tensorboard", "dvclive"))
    write_steps(journal, 1, 40)
    journal.event(40, "skipped")
    journal.rewind(20)
    journal.flush()
    journal.close()
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(journal_module.time, "monotonic", lambda: self.now)


def test_a_log_file_gets_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock(monkeypatch)
    journal = Journal(tmp_path, "pretrain", 100, 200)
    for step in range(101, 201):
        clock.now += 3.0
        journal.advance()
        if step % 5 == 0:
            journal.write(interval(step, 50.0, images_per_second=812.4, wait_share=0.02))
    journal.close()
    said = [record.getMessage() for record in caplog.records]
    # Intervals end every 15 s: at every second one 20 s have passed.
    assert len(said) == 10
    assert said[0] == (
        "pretrain: step 110 of 200, loss 0.4545, lr 1.00e-03, 812.4 images/s, "
        "2% waiting for data, 4 min left"
    )
    assert said[-1].startswith("pretrain: step 200 of 200")


def test_a_terminal_gets_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    journal = Journal(tmp_path, "pretrain", 60, 100)
    for _ in range(20):
        journal.advance()
    journal.write(interval(80, 40.0, images_per_second=812.4, wait_share=0.02))
    journal.rewind(70)
    journal.close()
    assert "pretrain:  70%" in terminal.getvalue()
    assert "70/100" in terminal.getvalue()
    assert "loss 0.5000, lr 1.00e-03, 812.4 images/s, 2% waiting for data" in terminal.getvalue()


def test_only_the_first_process_shows_progress(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    journal = Journal(tmp_path, "train", 0, 10, rank=1)
    write_steps(journal, 1, 10)
    journal.close()
    assert not caplog.records
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (101, "2 min"),
        (3599, "60 min"),
        (12_000, "3 h 20 min"),
        (190_800, "2 d 5 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_words_of_a_line_that_lacks_figures() -> None:
    assert in_words({"step": 3, "loss": None, "lr": 0.1}) == "lr 1.00e-01"
