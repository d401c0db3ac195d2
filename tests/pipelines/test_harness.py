"""A stage's exit code and last words, whoever runs it."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mae import errors
from tests.pipelines.project import Project, wait_for


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("MaestroError", 1),
        ("ParamsError", 2),
        ("DataError", 3),
        ("CheckpointError", 4),
        ("DivergedError", 5),
        ("Interrupted", 75),
    ],
)
def test_an_error_for_people_is_one_line_and_a_code(
    project: Project, error: str, code: int
) -> None:
    done = project.python("stage.py", "out", "0", error, check=False)
    assert done.returncode == code == getattr(errors, error).exit_code
    assert f"why {error} was raised" in done.stderr
    assert "Traceback" not in done.stderr
    assert f"ended with code {code}" in done.stderr


def test_a_bug_keeps_its_traceback(project: Project) -> None:
    done = project.python("stage.py", "out", "0", "crash", check=False)
    assert done.returncode == 1
    assert "RuntimeError: a bug" in done.stderr
    assert "Traceback" in done.stderr


def test_a_good_end_says_seconds_and_memory(project: Project) -> None:
    done = project.python("stage.py", "out", "0")
    assert "stage out 0 done in " in done.stderr
    megabytes = int(done.stderr.partition("peak memory ")[2].partition(" MB")[0])
    # A process inherits the peak of the one that it was forked from, which is this one.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1_000_000
    assert 5 < megabytes < 2000 + own
    assert (project.root / "out").read_text() == "made"


def test_faults_of_the_parameters_are_code_2(project: Project) -> None:
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "sede: 0"))
    done = project.python("stage.py", "out", "0", check=False)
    assert done.returncode == 2
    assert "did you mean 'seed'?" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts(project: Project, number: signal.Signals) -> None:
    stage = subprocess.Popen(
        [sys.executable, "stage.py", "out", "60"],
        cwd=project.root,
        env=project.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((project.root / "running-out").exists)
    stage.send_signal(number)
    _, said = stage.communicate(timeout=30)
    assert stage.returncode == 75
    assert "run the same command again" in said
    assert "Traceback" not in said


def test_a_stage_started_by_hand_outlives_the_shell(project: Project, tmp_path: Path) -> None:
    script = f"'{sys.executable}' stage.py out 3 & sleep 0.1"
    subprocess.run(["sh", "-c", script], cwd=project.root, env=project.environment, check=True)
    wait_for((project.root / "out").exists)


def test_an_orphan_from_the_start_does_not_begin(project: Project) -> None:
    """Killed before the stage could watch it, dvc leaves a stage that must end by itself."""
    environment = {**project.environment, "DVC_STAGE": "stage", "DVC_ROOT": str(project.root)}
    script = f"(sleep 1; exec '{sys.executable}' stage.py out 60 2> said) &"
    subprocess.run(
        ["sh", "-c", script],
        cwd=project.root,
        env=environment,
        start_new_session=True,
        check=True,
    )
    said = project.root / "said"
    wait_for(lambda: said.exists() and "ended with code 75" in said.read_text())
    assert "dvc, which started this stage, is gone" in said.read_text()
    assert not (project.root / "running-out").exists()
