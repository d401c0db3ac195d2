"""The pipeline as a flow without a server, whole programs in processes of their own."""

import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines.processes import is_dvc
from tests.pipelines.project import Project, wait_for

FLOW = ("-m", "pipelines.flows.train")
FORK = """
stages:
  source: {cmd: python stage.py source 0, outs: [source]}
  good: {cmd: python stage.py good 0, deps: [source], outs: [good]}
  bad: {cmd: python stage.py bad 0 DataError, deps: [source], outs: [bad]}
  after: {cmd: python stage.py after 0, deps: [bad], outs: [after]}
"""
SLOW = """
stages:
  slow: {cmd: python stage.py slow 120 offspring, outs: [slow]}
  after: {cmd: python stage.py after 0, deps: [slow], outs: [after]}
"""


def test_outcomes_and_no_server(project: Project) -> None:
    project.stages(FORK)
    done = project.python(*FLOW, "--workers", "2", check=False)
    table = {
        line.split()[0]: line for line in done.stdout.rpartition("\n\n")[2].strip().splitlines()
    }
    assert list(table) == ["source", "good", "bad", "after"]
    assert " done " in table["source"] and " done " in table["good"]
    assert " bad data " in table["bad"] and "why DataError was raised" in table["bad"]
    assert " skipped " in table["after"] and "needs bad" in table["after"]
    assert done.returncode == 3
    assert "Traceback" not in done.stdout + done.stderr
    database = Path(project.environment["PREFECT_HOME"]) / "prefect.db"
    assert not database.exists(), "a Prefect server was started"
    assert not project.alive()


def test_one_stage_and_what_it_needs(project: Project) -> None:
    project.stages(FORK)
    done = project.python(*FLOW, "--stage", "good")
    assert "bad" not in done.stdout
    assert (project.root / "good").exists()


def test_sigterm_lets_stages_save_and_says_how_it_ended(project: Project) -> None:
    project.stages(SLOW)
    log = project.root / "log"
    flow = project.start(*FLOW, log=log)
    wait_for((project.root / "running-slow").exists)
    flow.send_signal(signal.SIGTERM)
    assert flow.wait(60) == 75
    said = log.read_text()
    assert "slow   interrupted" in said
    assert "after  skipped" in said
    assert not project.alive()


def test_sigkill_leaves_nothing_and_the_next_run_completes(project: Project) -> None:
    project.stages(SLOW)
    flow = project.start(*FLOW)
    wait_for((project.root / "running-slow").exists)
    running = project.alive()
    assert len(running) >= 4, "flow, dvc, stage and its child"
    flow.kill()
    flow.wait()
    wait_for(lambda: not project.alive(), seconds=30)
    project.stages(SLOW.replace("120 offspring", "0"))
    project.python(*FLOW)
    assert (project.root / "after").exists()


def test_a_server_that_does_not_answer_is_an_error_at_once(project: Project) -> None:
    project.stages(FORK)
    done = project.python(*FLOW, "--server", "http://127.0.0.1:9/api", check=False)
    assert done.returncode == 1
    assert "no Prefect server answers at http://127.0.0.1:9/api" in done.stderr
    assert "Traceback" not in done.stderr


# --- policies, faults ---------------------------------------------------------------------------


def with_flows(project: Project, **flows: object) -> None:
    path = project.root / "params.yaml"
    content = yaml.safe_load(path.read_text())
    content["flows"] |= flows
    path.write_text(yaml.safe_dump(content))


def row(said: str, stage: str) -> str:
    """Return the line of the summary for a stage."""
    return next(line for line in said.splitlines()[::-1] if line.startswith(f"{stage} "))


def test_a_stage_is_tried_again_where_that_may_help(project: Project) -> None:
    project.stages(
        "stages:\n"
        "  ray: {cmd: python stage.py ray 0 once, outs: [ray]}\n"
        "  bad: {cmd: python stage.py bad 0 DivergedError, outs: [bad]}\n"
    )
    with_flows(project, default={"retries": 2, "retry_seconds": 0.1})
    done = project.python(*FLOW, check=False)
    assert done.returncode == 5
    assert "done" in row(done.stdout, "ray") and "2 attempts" in row(done.stdout, "ray")
    assert "ray: failed (RuntimeError: a cosmic ray): again in 0.1 s, 1 of 2" in done.stderr
    assert "diverged" in row(done.stdout, "bad") and "attempts" not in row(done.stdout, "bad")
    assert done.stdout.count("Running stage 'bad'") == 1


def test_a_stage_that_takes_too_long_is_stopped_and_can_go_on(project: Project) -> None:
    project.stages(SLOW)
    with_flows(project, stages={"slow": {"timeout_minutes": 0.1, "retries": 3}})
    done = project.python(*FLOW, check=False)
    assert done.returncode == 124
    assert "timed out" in row(done.stdout, "slow")
    assert "asked to stop after 6 s: run it again" in row(done.stdout, "slow")
    assert "interrupted: run the same command again" in done.stdout, "it could save its work"
    assert "skipped" in row(done.stdout, "after")
    assert not project.alive()


@pytest.mark.parametrize(
    ("arguments", "flows", "code", "message"),
    [
        ((), {"stages": {"goood": {}}}, 2, "no such stage in dvc.yaml; did you mean 'good'?"),
        (("--stage", "gone"), {}, 1, "there is no stage 'gone'; dvc.yaml has: source, good"),
        ((), {"workers": 0}, 2, "flows.workers"),
    ],
)
def test_what_does_not_exist_is_said_before_anything_runs(
    project: Project, arguments: tuple[str, ...], flows: dict[str, object], code: int, message: str
) -> None:
    project.stages(FORK)
    with_flows(project, **flows)
    done = project.python(*FLOW, *arguments, check=False)
    assert done.returncode == code
    assert message in done.stderr
    assert "Running stage" not in done.stdout
    assert "Traceback" not in done.stderr


def test_parameters_edited_between_stages_stop_the_run(project: Project) -> None:
    project.stages(
        "stages:\n"
        "  first: {cmd: python stage.py first 6, outs: [first]}\n"
        "  second: {cmd: python stage.py second 0, params: [seed], deps: [first], outs: [second]}\n"
    )
    log = project.root / "log"
    flow = project.start(*FLOW, log=log)
    wait_for((project.root / "running-first").exists)
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace("\nseed: 0", "\nseed: 7"))
    assert flow.wait(60) == 6
    assert " done " in row(log.read_text(), "first")
    assert "changed meanwhile" in row(log.read_text(), "second")
    assert "seed edited since this run began" in row(log.read_text(), "second")
    again = project.python(*FLOW)
    assert "unchanged" in row(again.stdout, "first") and " done " in row(again.stdout, "second")


def test_a_full_disk_is_said(project: Project) -> None:
    project.stages("stages: {s: {cmd: python stage.py s 0 full, outs: [s]}}")
    with_flows(project, default={"retries": 3})
    done = project.python(*FLOW, check=False)
    assert done.returncode == 1
    assert "disk full" in row(done.stdout, "s") and "free space and run it" in row(done.stdout, "s")
    assert "attempts" not in row(done.stdout, "s")


def test_a_damaged_cache_is_made_again(project: Project) -> None:
    """Also where outs are links into the cache, so that both are damaged at once."""
    project.stages(FORK.partition("  bad")[0])
    project.python(*FLOW)
    for file in (project.root / ".dvc/cache/files/md5").glob("*/*"):
        file.chmod(0o644)
        file.write_text("damaged")
    again = project.python(*FLOW)
    assert " done " in row(again.stdout, "source")
    assert (project.root / "source").read_text() == (project.root / "good").read_text() == "made"


def test_locks_damaged_under_another_dvc_at_work_are_said(project: Project) -> None:
    project.stages("stages: {s: {cmd: python stage.py s 0, outs: [s]}}")
    other = subprocess.Popen(
        ["bash", "-c", "exec -a dvc sleep 120"], cwd=project.root, env=project.environment
    )
    wait_for(lambda: is_dvc(psutil.Process(other.pid)))
    lock = project.root / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text("")
    done = project.python(*FLOW, check=False)
    other.kill()
    other.wait()
    assert done.returncode == 1
    assert "busy" in row(done.stdout, "s") and "is damaged while dvc is at work" in done.stdout
    assert "Traceback" not in done.stderr


def test_one_stage_alone_says_what_it_lacks(project: Project) -> None:
    """As where only a part of the results was fetched."""
    project.stages("stages: {s: {cmd: python stage.py s 0, deps: [gone], outs: [s]}}")
    done = project.python(*FLOW, check=False)
    assert done.returncode != 0
    assert "DVC lacks what this stage reads" in row(done.stdout, "s")
