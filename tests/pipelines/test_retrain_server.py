"""Retraining on a schedule, with a real Prefect server on the loopback address."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.project import wait_for
from tests.pipelines.retraining_project import FLOW, RetrainingProject
from tests.pipelines.servers import api

pytestmark = pytest.mark.slow


@pytest.fixture
def trained(template: Path, tmp_path: Path) -> Iterator[RetrainingProject]:
    """A project whose v0.1.0 has accuracy 0.5."""
    project = RetrainingProject.create(template, tmp_path / "project")
    assert "encoder@v0.1.0 now serves: no champion yet" in project.once()
    yield project
    project.end_all()


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

    def resume(self, run: str, **answer: Any) -> None:
        api(self.url, f"/flow_runs/{run}/resume", {"run_input": answer})

    def state(self, run: str) -> str:
        return api(self.url, f"/flow_runs/{run}")["state"]["name"]


def serve(project: RetrainingProject, server: str, *when: str) -> tuple[Any, Path]:
    log = project.root.parent / "serve.log"
    return project.start(*FLOW, "--serve", *when, "--server", server, log=log), log


def test_a_scheduled_run_fires(trained: RetrainingProject, prefect_server: str) -> None:
    trained.world(0.6)
    serving_process, log = serve(trained, prefect_server, "--cron", "* * * * *")
    server = Server(prefect_server)
    wait_for(lambda: "polling for scheduled runs" in log.read_text(), 120)
    wait_for(lambda: server.runs("Completed"), 240)
    assert "encoder@v0.2.0 now serves" in log.read_text()
    assert server.runs("Scheduled"), "the next ones are planned"
    serving_process.terminate()
    assert serving_process.wait(60) == 0
    assert not api(prefect_server, f"/deployments/{server.deployment()}")["paused"]


def test_two_triggers_one_run_and_a_killed_one_is_reconciled(
    trained: RetrainingProject, prefect_server: str
) -> None:
    trained.world(0.6, seconds=600)
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
    trained.world(0.7)
    serving_process, log = serve(trained, prefect_server, "--every", "600")
    wait_for(lambda: server.state(first) == "Crashed", 120)
    wait_for(lambda: "polling for scheduled runs" in log.read_text(), 120)
    third = server.trigger()
    wait_for(lambda: server.state(third) == "Completed", 180)
    assert trained.serving() == "v0.2.0"


def test_late_runs_are_skipped(trained: RetrainingProject, prefect_server: str) -> None:
    serving_process, log = serve(trained, prefect_server, "--every", "600")
    server = Server(prefect_server)
    wait_for(lambda: "polling for scheduled runs" in log.read_text(), 120)
    serving_process.terminate()
    serving_process.wait(60)
    due = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2026-01-01T00:00Z"}}}
    late = api(prefect_server, f"/deployments/{server.deployment()}/create_flow_run", due)["id"]
    serve(trained, prefect_server, "--every", "600")
    wait_for(lambda: server.state(late) == "Cancelled", 120)


def test_endings_are_states_and_a_person_answers_in_prefect(
    trained: RetrainingProject, prefect_server: str
) -> None:
    serving_process, log = serve(trained, prefect_server, "--every", "600")
    server = Server(prefect_server)
    wait_for(lambda: "polling for scheduled runs" in log.read_text(), 120)
    first = server.trigger()
    wait_for(lambda: server.state(first) == "NothingNew", 180)
    trained.world(0.4)
    second = server.trigger()
    wait_for(lambda: server.state(second) == "Rejected", 180)
    (trained.root / "seconds").write_text("no number")
    trained.world(0.41)
    (trained.root / "seconds").write_text("no number")
    third = server.trigger()
    wait_for(lambda: server.state(third) == "Failed", 180)

    gate = {"metric": "linear_probe.accuracy", "approval": True}
    trained.set(retrain={"gate": gate})
    trained.commit()
    trained.world(0.8)
    fourth = server.trigger()
    wait_for(lambda: server.state(fourth) == "Paused", 180)
    assert trained.serving() == "v0.1.0"
    server.resume(fourth, approve=True, reason="seen")
    wait_for(lambda: server.state(fourth) == "Completed", 180)
    assert trained.serving() == "v0.2.0"
    assert trained.decisions()[-1]["approval"] == {
        "answer": "approved",
        "by": "in Prefect",
        "reason": "seen",
    }
    serving_process.terminate()
    assert serving_process.wait(60) == 0


def test_one_run_on_a_server_without_a_deployment(
    trained: RetrainingProject, prefect_server: str
) -> None:
    trained.world(0.9)
    assert "encoder@v0.2.0 now serves" in trained.command("--server", prefect_server)
