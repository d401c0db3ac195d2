"""Deploying: pool, deployments and automations on a real server, runs by a real worker."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipelines.project import ROOT, Project, wait_for
from tests.pipelines.receivers import http_receiver

DEPLOY = ("-m", "pipelines.deploy")
STAGES = """
stages:
  made: {cmd: python stage.py made SECONDS, outs: [made]}
"""


@pytest.fixture
def deployable(project: Project, request: pytest.FixtureRequest) -> Project:
    """A project in a work pool of its own, whose `train` has what `retrain` has elsewhere."""
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    train, retrain = content["deployments"]
    train["schedules"], train["triggers"] = retrain["schedules"], retrain["triggers"]
    content["deployments"] = [train]
    for kind, pool in content["definitions"]["work_pools"].items():
        pool["name"] = f"{kind}-{request.node.name}"
    (project.root / "prefect.yaml").write_text(yaml.safe_dump(content))
    project.stages(STAGES.replace("SECONDS", "0"))
    return project


class Server:
    """What a server knows of one project."""

    def __init__(self, url: str, project: Project, name: str) -> None:
        self.url = url
        self.project = project
        self.name = name

    def ask(self, path: str, content: object = None) -> Any:
        """Ask it, and again while its SQLite is locked (503), as Prefect's own client does."""
        request = urllib.request.Request(
            self.url + path,
            data=None if content is None else json.dumps(content).encode(),
            headers={"content-type": "application/json"},
        )
        for _ in range(20):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
                time.sleep(1)
        raise TimeoutError(f"{self.url}{path} answers 503 all the time")

    def deploy(self, *options: str) -> str:
        options = (*options, "--server", self.url, "--name", self.name)
        return self.project.python(*DEPLOY, *options).stdout

    def deployment(self, flow: str = "train") -> dict[str, Any]:
        return self.ask(f"/deployments/name/{flow}/{self.name}")

    def pools(self) -> list[dict[str, Any]]:
        return self.ask("/work_pools/filter", {})

    def automations(self) -> dict[str, Any]:
        found = self.ask("/automations/filter", {})
        return {one["name"]: one for one in found if one["name"].startswith(self.name)}

    def runs(self, *states: str) -> list[dict[str, Any]]:
        chosen = {"deployments": {"id": {"any_": [self.deployment()["id"]]}}}
        return [
            run
            for run in self.ask("/flow_runs/filter", chosen)
            if not states or run["state"]["name"] in states
        ]

    def trigger(self) -> str:
        return self.ask(f"/deployments/{self.deployment()['id']}/create_flow_run", {})["id"]

    def run(self, identity: str) -> dict[str, Any]:
        return self.ask(f"/flow_runs/{identity}")

    def worker(self) -> subprocess.Popen[bytes]:
        self.project.environment |= {
            "PREFECT_API_URL": self.url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_PREFETCH_SECONDS": "1",
        }
        pool = self.deployment()["work_pool_name"]
        command = ("-m", "prefect", "worker", "start", "--pool", pool)
        return self.project.start(*command, log=self.project.root.parent / "worker.log")


@pytest.fixture
def server(
    deployable: Project, prefect_server: str, request: pytest.FixtureRequest
) -> Iterator[Server]:
    server = Server(prefect_server, deployable, request.node.name.replace("_", "-"))
    yield server
    deployable.end_all()
    for name in ("train", "retrain"):  # or its runs come due while other tests wait
        try:
            identity = server.deployment(name)["id"]
        except urllib.error.HTTPError:
            continue
        urllib.request.urlopen(
            urllib.request.Request(f"{server.url}/deployments/{identity}", method="DELETE")
        )


# --- what would be done -------------------------------------------------------------------------


def plan(root: Path, *options: str) -> dict[str, Any]:
    project = Project(root)
    project.environment["PREFECT_HOME"] = "/nonexistent"
    return yaml.safe_load(project.python(*DEPLOY, "--dry-run", *options).stdout)


def test_a_dry_run_says_what_would_be_done() -> None:
    found = plan(ROOT, "--name", "maestro", "--cron", "0 4 * * 1", "--timezone", "Europe/London")
    train, retrain = found["deployments"]
    assert found["work_pool"]["type"] == "process"
    assert "schedules" not in train
    assert retrain["schedules"] == [
        {"cron": "0 4 * * 1", "timezone": "Europe/London", "active": True}
    ]
    for each in (train, retrain):
        assert each["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        assert each["work_pool"]["name"] == found["work_pool"]["name"]


def test_the_name_and_the_pool_are_everywhere(deployable: Project) -> None:
    if os.getuid() == 0:
        os.chown(deployable.root, 1234, 1234)
    owner = deployable.root.stat()
    found = plan(deployable.root, "--pool", "docker", "--image", "mine:1", "--lost-after", "1200")
    (train,) = found["deployments"]
    variables = train["work_pool"]["job_variables"]
    assert variables["image"] == "mine:1"
    assert variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "300"
    assert variables["container_create_kwargs"]["user"] == f"{owner.st_uid}:{owner.st_gid}"
    assert train["triggers"][0]["match"] == {"prefect.resource.id": "maestro.data.project"}
    (schedule,) = plan(deployable.root, "--no-schedule")["deployments"][0]["schedules"]
    assert not schedule["active"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make what belongs to root")
def test_containers_never_run_as_root(deployable: Project) -> None:
    done = deployable.python(*DEPLOY, "--dry-run", "--pool", "docker", check=False)
    assert done.returncode == 1 and "is root's" in done.stderr


def test_options_that_make_no_sense(deployable: Project) -> None:
    for options in (
        ("--lost-after", "10"),
        ("--image", "mine:1"),
        ("--cron", "* * * * *", "--no-schedule"),
        ("--pool", "slurm"),
    ):
        assert deployable.python(*DEPLOY, "--dry-run", *options, check=False).returncode == 2
    done = deployable.python(*DEPLOY, "--root", "..", check=False)
    assert done.returncode == 1 and "holds no prefect.yaml" in done.stderr
    done = deployable.python(*DEPLOY, "--server", "http://127.0.0.1:9/api", check=False)
    assert done.returncode == 1 and "no Prefect server answers" in done.stderr


def test_deployments_name_flows_that_exist() -> None:
    from prefect.flows import load_flow_from_entrypoint

    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    for deployment in deployments:
        flow = load_flow_from_entrypoint(deployment["entrypoint"])
        assert flow.name == deployment["entrypoint"].rpartition(".")[2]
        assert deployment["parameters"].keys() <= flow.parameters.properties.keys()
        assert set(flow.parameters.required or ()) <= deployment["parameters"].keys()


# --- on a server --------------------------------------------------------------------------------


@pytest.mark.slow
def test_twice_is_the_same_and_pools_change(server: Server) -> None:
    if os.getuid() == 0:
        os.chown(server.project.root, 1234, 1234)
    said = server.deploy()
    assert "prefect worker start --pool process-" in said
    first, automations = server.deployment(), server.automations()
    assert list(automations) == [f"{server.name}: lost runs", f"{server.name}__automation_1"]
    server.deploy()
    second = server.deployment()
    assert second["id"] == first["id"]
    assert [one["schedule"]["cron"] for one in second["schedules"]] == ["0 3 * * *"]
    assert server.automations().keys() == automations.keys()
    assert (second["concurrency_options"]["collision_strategy"]) == "CANCEL_NEW"
    assert second["job_variables"]["working_dir"] == str(server.project.root)

    server.deploy("--pool", "docker", "--cron", "5 5 * * *")
    moved = server.deployment()
    assert moved["id"] == first["id"]
    assert [one["schedule"]["cron"] for one in moved["schedules"]] == ["5 5 * * *"]
    assert moved["work_pool_name"].startswith("docker-")
    assert moved["job_variables"]["volumes"] == [f"{server.project.root}:/maestro"]
    server.deploy("--pool", "kubernetes", "--no-schedule")
    assert [one["active"] for one in server.deployment()["schedules"]] == [False]
    (pool,) = (one for one in server.pools() if one["name"].startswith("kubernetes-test_twice"))
    manifest = pool["base_job_template"]["job_configuration"]["job_manifest"]
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


@pytest.mark.slow
def test_a_scheduled_run_through_a_worker(server: Server) -> None:
    server.deploy("--cron", "* * * * *")
    server.worker()
    wait_for(lambda: server.runs("Completed"), 240)
    assert (server.project.root / "made").exists()


@pytest.mark.slow
def test_a_lost_run_is_found_and_told_of_and_the_next_one_starts(server: Server) -> None:
    with http_receiver() as receiver:
        _save_webhook(server, receiver.url)
        params = yaml.safe_load((server.project.root / "params.yaml").read_text())
        events = ["failed", "invalid_data", "promoted"]
        params["retrain"]["notify"] = [{"block": "webhook/gone", "events": events}]
        (server.project.root / "params.yaml").write_text(yaml.safe_dump(params))
        done = server.project.python(*DEPLOY, "--server", server.url, check=False)
        assert done.returncode == 1 and "no block 'webhook/gone'" in done.stderr
        params["retrain"]["notify"][0]["block"] = "webhook/lost-runs"
        (server.project.root / "params.yaml").write_text(yaml.safe_dump(params))

        server.project.stages(STAGES.replace("SECONDS", "600"))
        server.deploy("--no-schedule", "--lost-after", "60")
        worker = server.worker()
        lost = server.trigger()
        wait_for(lambda: server.run(lost)["state"]["name"] == "Running", 120)
        wait_for((server.project.root / "running-made").exists, 120)
        server.project.end_all()
        worker.wait()
        assert server.run(lost)["state"]["name"] == "Running", "nobody was left to tell the server"
        wait_for(lambda: server.run(lost)["state"]["name"] == "Crashed", 300)
        assert "no sign of life for 60 s" in server.run(lost)["state"]["message"]
        wait_for(lambda: receiver.received, 60)
        told = receiver.received[0].json()
        assert told["event"] == "failed" and told["flow_run"] == lost
        assert told["title"] == f"train/{server.name}: Crashed"

        server.project.stages(STAGES.replace("SECONDS", "0 DataError"))
        server.worker()
        following = server.trigger()
        wait_for(lambda: server.run(following)["state"]["name"] == "InvalidData", 120)
        wait_for(lambda: len(receiver.received) == 2, 60)
        told = receiver.received[1].json()
        assert told["event"] == "invalid_data" and told["flow_run"] == following
        assert "why DataError was raised" in told["text"]
    assert server.automations().keys() == {
        f"{server.name}: lost runs",
        f"{server.name}: tell webhook/lost-runs of crashes",
        f"{server.name}: tell webhook/lost-runs of failed",
        f"{server.name}: tell webhook/lost-runs of invalid_data",
        f"{server.name}__automation_1",
    }
    params["retrain"]["notify"] = []
    (server.project.root / "params.yaml").write_text(yaml.safe_dump(params))
    server.deploy("--no-schedule")
    assert len(server.automations()) == 2, "those that nobody asks for any more are gone"


def _save_webhook(server: Server, url: str) -> None:
    program = (
        "from prefect.blocks.webhook import Webhook; "
        f"Webhook(url='{url}').save('lost-runs', overwrite=True)"
    )
    server.project.environment["PREFECT_API_URL"] = server.url
    server.project.python("-c", program)


@pytest.mark.slow
def test_new_files_start_a_run_and_two_at_once_are_one(server: Server) -> None:
    root = server.project.root
    incoming = root.parent / "incoming"
    incoming.mkdir()
    (incoming / "a.png").write_bytes(b"a")
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["data"]["images"] = {"source": "folder", "path": "../incoming"}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    server.deploy("--no-schedule")
    server.worker()
    watch = ("-m", "pipelines.watch", "--server", server.url, "--name", server.name)
    server.project.start(*watch, "--every", "0.5", "--settle", "1", log=root.parent / "watch.log")
    wait_for(lambda: len(server.runs("Completed")) == 1, 180)

    server.project.stages(STAGES.replace("SECONDS", "30"))
    (incoming / "b.png").write_bytes(b"b")
    wait_for(lambda: len(server.runs("Running")) == 1, 120)
    server.project.python(*watch, "--once")
    wait_for(lambda: len(server.runs("Cancelled")) == 1, 120)
    wait_for(lambda: len(server.runs("Completed")) == 2, 180)
