"""`mae runs list` and `show`: what they say of runs in every state."""

import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mae import cli
from mae.errors import DataError
from mae.files import read_json, write_json
from mae.params import read_params
from mae.training.journal import Journal
from mae.training.runs import find_run, list_runs, read_run

ROOT = Path(__file__).parents[1]
PARAMS = str(ROOT / "params.yaml")


def make_run(folder: Path, name: str = "abc123", *, steps: int = 60, **about: Any) -> Path:
    """A run of 200 steps of which `steps` are done, in this process unless `about` says else."""
    run = folder / "pretrain" / name
    journal = Journal(run, "pretrain", 0, 200)
    for step in range(20, steps + 1, 20):
        journal.write(
            {
                "step": step,
                "epoch": step // 50,
                "lr": 0.001,
                "loss": 10.0 / step,
                "images_per_second": 640.0,
                "wait_share": 0.03,
                "seconds": 2.0,
            }
        )
    journal.close()
    content = {
        "title": "pretrain",
        "total": 200,
        "steps_per_epoch": 50,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(run / "run.json", content | about)
    (run / "checkpoints/step-0000040").mkdir(parents=True)
    return run


def grow(run: Path, start: int) -> Journal:
    return Journal(run, "pretrain", start, 200)


def grow_old(run: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(run / "journal.jsonl", (then, then))


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["runs", *arguments])


# --- states ---------------------------------------------------------------------------------------


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path))
    assert (run.state, run.step, run.total, run.checkpoint) == ("running", 60, 200, 40)
    assert run.seconds_left == pytest.approx(140 * 2.0 / 20)
    assert run.health().startswith("running, last sign")


def test_a_run_that_just_began(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, steps=0))
    assert (run.state, run.seconds_left) == ("starting", None)


def test_a_run_that_says_nothing_for_long(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    grow_old(folder, 119)
    assert read_run(folder).state == "running"
    grow_old(folder, 1200)
    assert read_run(folder).state == "silent"
    assert "silent, last sign 20 min ago" in read_run(folder).health()


def test_slow_intervals_are_no_silence(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    journal = grow(folder, 60)
    journal.write({"step": 80, "loss": 0.1, "lr": 0.1, "seconds": 300.0})
    journal.close()
    grow_old(folder, 1200)
    assert read_run(folder).state == "running"


def test_a_run_whose_process_is_gone(tmp_path: Path) -> None:
    folder = make_run(tmp_path, pid=dead_process())
    assert read_run(folder).state == "stopped"
    assert "run the same command again" in read_run(folder).health()


def test_a_process_that_was_born_after_the_run_is_another(tmp_path: Path) -> None:
    earlier = datetime.now(UTC) - timedelta(days=30)
    folder = make_run(tmp_path, started=earlier.isoformat(timespec="seconds"))
    assert read_run(folder).state == "stopped"


def test_a_run_on_another_machine_is_judged_by_its_journal(tmp_path: Path) -> None:
    folder = make_run(tmp_path, host="elsewhere", pid=1)
    assert read_run(folder).state == "running"
    grow_old(folder, 3600)
    assert read_run(folder).state == "stopped"


@pytest.mark.parametrize("kind", ["interrupted", "diverged"])
def test_how_a_run_ended(tmp_path: Path, kind: str) -> None:
    folder = make_run(tmp_path, pid=dead_process())
    journal = grow(folder, 60)
    journal.event(60, kind)
    journal.close()
    assert read_run(folder).state == kind
    # What came later counts: it went on, and was killed.
    journal = grow(folder, 60)
    journal.write({"step": 80, "loss": 0.1, "lr": 0.1})
    journal.close()
    assert read_run(folder).state == "stopped"


def test_a_finished_run(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, steps=200, pid=dead_process()))
    assert (run.state, run.health(), run.seconds_left) == ("finished", "finished", None)


def test_trouble_is_counted(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    journal = grow(folder, 60)
    for step in (61, 62, 63):
        journal.event(step, "skipped", reason="the loss became nan")
    journal.event(60, "rewound", diverged_at=63)
    journal.close()
    assert read_run(folder).health().endswith("3 bad steps left out, went back 1 time")


def test_a_damaged_or_missing_description_is_survived(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "run.json").write_text('{"total": 2')
    assert (read_run(folder).state, read_run(folder).total) == ("stopped", None)
    (folder / "run.json").write_text('{"host": "' + socket.gethostname() + '"}')
    assert read_run(folder).state == "stopped"
    (folder / "run.json").unlink()
    assert invoke("list", "--folder", str(tmp_path)).output.splitlines()[1].split()[:3] == [
        "pretrain",
        "abc123",
        "60",
    ]


def test_other_folders_are_no_runs(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "features" / "0123").mkdir(parents=True)
    (tmp_path / "a file").write_text("")
    assert [run.identity for run in list_runs(tmp_path)] == ["abc123"]


# --- the commands ---------------------------------------------------------------------------------


def test_list_prints_a_line_for_each_run_the_latest_first(tmp_path: Path) -> None:
    grow_old(make_run(tmp_path, "old", pid=dead_process()), 5000)
    make_run(tmp_path, "new")
    done = invoke("list", "--folder", str(tmp_path))
    assert done.exit_code == 0, done.output
    header, new, old = done.output.splitlines()
    assert header.split()[:3] == ["stage", "run", "step"]
    assert new.split()[:2] == ["pretrain", "new"]
    for words in ("60 of 200", "0.1667", "640", "3%", "14 s", " 40 ", "running"):
        assert words in new
    assert old.split()[:2] == ["pretrain", "old"]
    assert "stopped" in old


def test_list_of_nothing(tmp_path: Path) -> None:
    done = invoke("list", "--folder", str(tmp_path / "runs"))
    assert done.exit_code == 0
    assert "holds no runs yet" in done.output


def test_a_run_is_found_by_how_its_identity_begins(tmp_path: Path) -> None:
    make_run(tmp_path, "abc123")
    make_run(tmp_path, "abd456")
    assert find_run(tmp_path, "abc").identity == "abc123"
    with pytest.raises(DataError, match=r"several runs begin with ab: .*abc123.*abd456|abd456"):
        find_run(tmp_path, "ab")
    with pytest.raises(DataError, match=r"holds no run x: .*abc123"):
        find_run(tmp_path, "x")


def test_show_names_what_differs_and_what_happened(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    content = read_params(PARAMS).model_dump(mode="json", by_alias=True)
    content["pretrain"]["epochs"] = 77
    content["model"]["mask"]["ratio"] = 0.6
    content["evaluate"]["knn"]["temperature"] = 0.5  # nothing to a run
    del content["runtime"]["trackers"]
    write_json(run / "params.json", content)
    journal = grow(run, 60)
    journal.observed(40, {"val_loss": 0.9})
    journal.observed(60, {"val_loss": 0.8, "knn": 0.75})
    journal.event(58, "skipped", reason="the loss became nan", folder="incidents/step-0000057")
    journal.event(40, "rewound", diverged_at=58)
    journal.close()
    done = invoke("show", "abc", "--folder", str(tmp_path), "--params", PARAMS)
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    epochs = read_params(PARAMS).pretrain.epochs
    assert f"pretrain.epochs 77 {epochs}" in lines
    assert "model.mask.ratio 0.6 0.75" in lines
    assert "and 1 that the run's version did not have" in lines
    assert "temperature" not in done.output
    assert "step 58: skipped: the loss became nan; folder incidents/step-0000057" in lines
    assert "step 40: rewound: diverged at 58" in lines
    assert "val_loss 0.9 0.8" in lines
    assert "knn 0.75" in lines
    assert "60 1 0.001 0.1667 640 0.03 2" in lines
    assert "waits for its computations: data come fast enough" in lines
    assert "epochs 1.2" in lines


def test_show_compares_as_the_method_resolves(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = tmp_path / "params.yaml"
    text = Path(PARAMS).read_text().replace("method: mae ", "method: simmim ")
    path.write_text(text)
    from mae.model.methods import resolve_method

    params = read_params(path)
    resolved = params.model_copy(update={"model": resolve_method(params.model)})
    write_json(run / "params.json", resolved.model_dump(mode="json", by_alias=True))
    done = invoke("show", "abc", "--folder", str(tmp_path), "--params", str(path))
    assert f"parameters that differ from {path}: none" in done.output
    absent = invoke("show", "abc", "--folder", str(tmp_path), "--params", str(tmp_path / "no.yaml"))
    assert "not compared" in absent.output


def test_show_says_which_process_waits_for_data(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for rank, share in ((1, 0.02), (2, 0.43)):
        journal = Journal(run, "pretrain", 0, 200, rank=rank)
        journal.write({"step": 60, "loss": 0.1, "images_per_second": 320.0, "wait_share": share})
        journal.close()
    said = invoke("show", "abc", "--folder", str(tmp_path), "--params", PARAMS).output
    assert "data, 43% of the time of process 2" in said
    assert "last lines of process 1" in said
    about = read_json(run / "run.json")
    write_json(run / "run.json", about | {"pid": dead_process()})
    said = invoke("show", "abc", "--folder", str(tmp_path), "--params", PARAMS).output
    assert "nothing: it is not running" in said
