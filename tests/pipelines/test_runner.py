"""One stage through a real dvc: how it ended is known, and no process is left, however it ends."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipelines.outcome import Outcome, StageRun
from pipelines.processes import is_dvc
from pipelines.runner import reproduce
from tests.pipelines.project import MARK, ROOT, Project, wait_for

SLOW = "stages: {slow: {cmd: python stage.py out 60 offspring, outs: [out]}}"
# Not one simple command, so the shell stays between dvc and the stage.
SHELLED = "stages: {slow: {cmd: 'python stage.py out 60 && true', outs: [out]}}"
QUICK = "stages: {slow: {cmd: python stage.py out 0, outs: [out]}}"


@pytest.fixture(autouse=True)
def _surroundings(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, project.mark)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(project: Project, stage: str, lines: list[str] | None = None, **options) -> StageRun:
    into = [] if lines is None else lines
    return reproduce(project.root, stage, into.append, threading.Event(), **options)


def others(project: Project) -> list[psutil.Process]:
    """Return what lives of the project's processes."""
    return [process for process in project.alive() if process.pid != os.getpid()]


def test_done_unchanged_forced_restored(project: Project) -> None:
    project.stages("stages: {s: {cmd: python stage.py out 0, deps: [v], outs: [out]}}")
    version = project.root / "v"
    version.write_text("1")
    lines: list[str] = []
    assert run(project, "s", lines).outcome == Outcome.DONE
    assert any("stage out 0 done in" in line for line in lines)
    assert run(project, "s").outcome == Outcome.UNCHANGED
    assert run(project, "s", force=True).outcome == Outcome.DONE
    version.write_text("2")
    assert run(project, "s").outcome == Outcome.DONE
    version.write_text("1")
    assert run(project, "s").outcome == Outcome.RESTORED


@pytest.mark.parametrize(
    ("behaviour", "outcome", "code", "message"),
    [
        ("DataError", Outcome.BAD_DATA, 3, "why DataError was raised"),
        ("crash", Outcome.FAILED, 1, "RuntimeError: a bug"),
        ("suicide", Outcome.KILLED, 137, "killed by SIGKILL: out of memory?"),
    ],
)
def test_bad_ends(
    project: Project, behaviour: str, outcome: Outcome, code: int, message: str
) -> None:
    project.stages(f"stages: {{s: {{cmd: python stage.py out 0 {behaviour}, outs: [out]}}}}")
    found = run(project, "s")
    assert (found.outcome, found.exit_code, found.message) == (outcome, code, message)
    assert not others(project)


def test_an_unknown_stage_is_dvcs_own_error(project: Project) -> None:
    project.stages(QUICK)
    found = run(project, "other")
    assert found.outcome == Outcome.FAILED
    assert "other" in found.message


def test_a_faulty_listener_does_not_harm_the_stage(project: Project) -> None:
    project.stages(QUICK)
    found = reproduce(project.root, "slow", lambda line: 1 / 0, threading.Event())
    assert found.outcome == Outcome.DONE


def stopped_while_running(project: Project) -> StageRun:
    """Run the slow stage, ask it to stop once it works, and return how it ended."""
    stop, found = threading.Event(), list[StageRun]()
    thread = threading.Thread(
        target=lambda: found.append(reproduce(project.root, "slow", print, stop))
    )
    thread.start()
    wait_for((project.root / "running-out").exists)
    stop.set()
    thread.join(30)
    return found[0]


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_stopped_from_outside(
    project: Project, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", shell)
    project.stages(SLOW)
    found = stopped_while_running(project)
    assert found.outcome == Outcome.INTERRUPTED
    assert not others(project), "the stage's own child in its own session must be gone as well"
    project.stages(QUICK)
    assert run(project, "slow").outcome == Outcome.DONE


@pytest.mark.parametrize("pipeline", [SLOW, SHELLED])
def test_dvc_is_killed(project: Project, pipeline: str) -> None:
    """The stage ends by itself, and the next run completes."""
    project.stages(pipeline)
    dvc = project.start("-m", "dvc", "repro", "--single-item", "slow")
    stage = int(str(wait_for(lambda: _text(project.root / "running-out"))))
    time.sleep(0.5)
    dvc.kill()
    dvc.wait()
    wait_for(lambda: not psutil.pid_exists(stage), seconds=20)
    wait_for(lambda: not others(project), seconds=5)
    project.stages(QUICK)
    assert run(project, "slow").outcome == Outcome.DONE


def test_a_stubborn_orphan_is_waited_for_then_killed(project: Project) -> None:
    """A command of somebody else's, without our harness, must not write beside the new run."""
    project.stages("stages: {slow: {cmd: sleep 200, outs: [out]}}")
    dvc = project.start("-m", "dvc", "repro", "--single-item", "slow")
    wait_for(lambda: any(process.name() == "sleep" for process in others(project)))
    dvc.kill()
    dvc.wait()
    assert others(project)
    project.stages(QUICK)
    assert run(project, "slow", grace=1.0).outcome == Outcome.DONE
    assert not others(project)


def test_the_same_stage_twice(project: Project) -> None:
    """The second is told, and the first is left in peace."""
    project.stages(QUICK.replace("out 0", "out 8"))
    first = project.start("-m", "dvc", "repro", "--single-item", "slow")
    wait_for((project.root / "running-out").exists)
    assert run(project, "slow").outcome == Outcome.BUSY
    assert first.wait(60) == 0
    assert (project.root / "out").exists()


def test_an_empty_lock_file_is_healed(project: Project) -> None:
    project.stages(QUICK)
    lock = project.root / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text("")
    assert "corrupted" in project.python("-m", "dvc", "repro", check=False).stderr
    assert run(project, "slow").outcome == Outcome.DONE


def test_a_lock_of_a_process_that_is_no_dvc_is_healed(project: Project) -> None:
    """As in a container, where the same small ids come back."""
    project.stages(QUICK)
    lock = project.root / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    holder = {"pid": os.getpid(), "cmd": "dvc repro slow"}
    lock.write_text(json.dumps({"write": {str(project.root / "out"): holder}, "read": {}}))
    assert not is_dvc(psutil.Process())
    assert project.python("-m", "dvc", "repro", check=False).returncode != 0
    assert run(project, "slow").outcome == Outcome.DONE


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_signals_ignored_by_our_parent_still_reach_the_stage(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell ignores SIGINT for what it starts in the background, and children inherit that."""
    project.stages(SLOW)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        found = stopped_while_running(project)
    finally:
        signal.signal(signal.SIGINT, before)
    assert found.outcome == Outcome.INTERRUPTED
    assert found.seconds < 30
