"""The pipeline as a flow without a server, whole programs in processes of their own."""

import signal
from pathlib import Path

import psutil
import pytest
import yaml

from tests.pipelines.project import ROOT, Project, wait_for

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


@pytest.mark.slow
def test_the_same_flow_on_a_server(project: Project, prefect_server: str) -> None:
    project.stages(FORK)
    done = project.python(*FLOW, "--server", prefect_server, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 3
    assert "why DataError was raised" in said
    assert "temporary server" not in said
    assert [process for process in project.alive() if psutil.pid_exists(process.pid)] == []


def test_deployments_name_flows_that_exist() -> None:
    from prefect.flows import load_flow_from_entrypoint

    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    for deployment in deployments:
        flow = load_flow_from_entrypoint(deployment["entrypoint"])
        assert set(deployment["parameters"]) == set(flow.parameters.properties)
    assert {deployment["entrypoint"].rpartition(".")[2] for deployment in deployments} == {
        "train",
        "retrain",
    }
