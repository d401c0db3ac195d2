"""Retraining: once without a server, and on a schedule with a real one."""

import json
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from mae.params import GateParams, RetrainParams
from pipelines.dvc_graph import StageNode
from pipelines.registry import champion
from pipelines.retraining import to_force
from tests.pipelines.project import Project, wait_for

FLOW = ("-m", "pipelines.flows.retrain")
PIPELINE = """
artifacts:
  encoder: {path: model}
stages:
  fit:
    cmd: >-
      sleep $(cat ../seconds) && cp ../world model && mkdir -p artifacts/metrics &&
      cp model artifacts/metrics/linear_probe.json
    outs: [model]
    metrics: [{artifacts/metrics/linear_probe.json: {cache: false}}]
"""


def world(project: Project, accuracy: float, seconds: float = 0) -> None:
    """Change what the pipeline reads from outside, which DVC cannot see."""
    (project.root.parent / "world").write_text(f'{{"accuracy": {accuracy}}}')
    (project.root.parent / "seconds").write_text(str(seconds))


@pytest.fixture(scope="module")
def one_version(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = Project(tmp_path_factory.mktemp("retrain") / "project")
    shutil.copytree(template, project.root)
    project.stages(PIPELINE)
    world(project, 0.5)
    (project.root / ".gitignore").write_text("running-*\n/runs/\n/model\n")
    project.commit()
    assert "encoder@v0.1.0 now serves: no champion yet" in _once(project)
    return project.root


@pytest.fixture
def trained(one_version: Path, project: Project) -> Project:
    """A project whose v0.1.0 has accuracy 0.5."""
    shutil.rmtree(project.root)
    shutil.copytree(one_version, project.root)
    world(project, 0.5)
    return project


def serving(project: Project) -> str:
    found = champion(project.root, "encoder", "prod")
    assert found is not None
    return found.version


def test_better_is_promoted_worse_and_equal_are_not(trained: Project) -> None:
    commit = trained.run("git", "rev-parse", "HEAD").stdout
    assert "the pipeline gave the champion, v0.1.0, again" in _once(trained)
    world(trained, 0.4)
    assert "the champion stays: linear_probe.accuracy 0.4" in _once(trained)
    assert serving(trained) == "v0.1.0"
    assert trained.run("git", "rev-parse", "HEAD").stdout == commit
    world(trained, 0.75)
    assert "encoder@v0.2.0 now serves" in _once(trained)
    assert serving(trained) == "v0.2.0"
    assert trained.run("git", "status", "--porcelain").stdout == ""
    records = sorted((trained.root / "runs" / "retrain").glob("*.json"))
    assert [json.loads(file.read_text())["promote"] for file in records] == [
        True,
        False,
        False,
        True,
    ]


def test_uncommitted_changes_are_refused_before_anything_runs(trained: Project) -> None:
    trained.stages(PIPELINE + "  # a change\n")
    world(trained, 0.9)
    done = trained.python(*FLOW, "--once", check=False)
    assert done.returncode == 1
    assert "uncommitted changes in dvc.yaml" in done.stderr
    assert "Running stage" not in done.stdout


def test_a_failing_pipeline_keeps_the_champion(trained: Project) -> None:
    (trained.root.parent / "world").unlink()
    assert trained.python(*FLOW, "--once", check=False).returncode == 1
    assert serving(trained) == "v0.1.0"


def test_only_sources_are_forced() -> None:
    graph = [StageNode("a", ()), StageNode("b", ("a",)), StageNode("c", ())]
    rule = GateParams(metric="x")
    assert to_force(graph, RetrainParams(gate=rule)) == ["a", "c"]
    assert to_force(graph, RetrainParams(gate=rule, refresh_sources=False)) == []


def test_schedule_options_belong_together(project: Project) -> None:
    assert project.python(*FLOW, "--serve", check=False).returncode == 2
    assert project.python(*FLOW, "--once", "--cron", "* * * * *", check=False).returncode == 2


def _once(project: Project) -> str:
    done = project.python(*FLOW, "--once")
    return done.stderr


# --- with a server ----------------------------------------------------------------------------


def api(server: str, path: str, content: dict[str, Any] | None = None) -> Any:
    """Ask the server, and again while its SQLite is locked (503), as Prefect's own client does."""
    for _ in range(10):
        try:
            return ask(server, path, content)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            time.sleep(1)
    raise TimeoutError(f"{server}{path} answers 503 all the time")


def ask(server: str, path: str, content: dict[str, Any] | None) -> Any:
    request = urllib.request.Request(
        server + path,
        data=None if content is None else json.dumps(content).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


class Server:
    """What the server knows of the one deployment of these tests."""

    def __init__(self, url: str) -> None:
        self.url = url

    def deployment(self) -> str:
        return api(self.url, "/deployments/name/retrain/project")["id"]

    def runs(self, *states: str) -> list[dict[str, Any]]:
        chosen = {"deployments": {"id": {"any_": [self.deployment()]}}}
        found = api(self.url, "/flow_runs/filter", chosen)
        return [run for run in found if run["state"]["name"] in states]

    def trigger(self) -> str:
        return api(self.url, f"/deployments/{self.deployment()}/create_flow_run", {})["id"]

    def state(self, run: str) -> str:
        return api(self.url, f"/flow_runs/{run}")["state"]["name"]


def serve(project: Project, server: str, *when: str) -> tuple[Any, Path]:
    log = project.root.parent / "serve.log"
    return project.start(*FLOW, "--serve", *when, "--server", server, log=log), log


@pytest.mark.slow
def test_a_scheduled_run_fires(trained: Project, prefect_server: str) -> None:
    world(trained, 0.6)
    serving_process, log = serve(trained, prefect_server, "--cron", "* * * * *")
    server = Server(prefect_server)
    wait_for(lambda: "polling for scheduled runs" in log.read_text(), 120)
    wait_for(lambda: server.runs("Completed"), 240)
    assert "encoder@v0.2.0 now serves" in log.read_text()
    assert server.runs("Scheduled"), "the next ones are planned"
    serving_process.terminate()
    assert serving_process.wait(60) == 0
    assert not api(prefect_server, f"/deployments/{server.deployment()}")["paused"]


@pytest.mark.slow
def test_two_triggers_one_run_and_a_killed_one_is_reconciled(
    trained: Project, prefect_server: str
) -> None:
    world(trained, 0.6, seconds=600)
    serving_process, log = serve(trained, prefect_server, "--every", "600")
    server = Server(prefect_server)
    wait_for(lambda: "polling for scheduled runs" in log.read_text(), 120)
    first = server.trigger()
    wait_for(lambda: server.state(first) == "Running", 120)
    second = server.trigger()
    wait_for(lambda: server.state(second) == "Cancelled", 120)
    assert server.state(first) == "Running"

    trained.end_all()
    serving_process.wait()
    assert server.state(first) == "Running", "nobody was left to tell the server"
    world(trained, 0.7)
    serving_process, log = serve(trained, prefect_server, "--every", "600")
    wait_for(lambda: server.state(first) == "Crashed", 120)
    wait_for(lambda: "polling for scheduled runs" in log.read_text(), 120)
    third = server.trigger()
    wait_for(lambda: server.state(third) == "Completed", 180)
    assert serving(trained) == "v0.2.0"


@pytest.mark.slow
def test_late_runs_are_skipped(trained: Project, prefect_server: str) -> None:
    serving_process, log = serve(trained, prefect_server, "--every", "600")
    server = Server(prefect_server)
    wait_for(lambda: "polling for scheduled runs" in log.read_text(), 120)
    serving_process.terminate()
    serving_process.wait(60)
    due = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2026-01-01T00:00Z"}}}
    late = api(prefect_server, f"/deployments/{server.deployment()}/create_flow_run", due)["id"]
    serve(trained, prefect_server, "--every", "600")
    wait_for(lambda: server.state(late) == "Cancelled", 120)
