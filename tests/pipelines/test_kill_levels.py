"""SIGKILL, cancelling and dying servers: nothing is left, nothing trains twice, the next goes on.

The stage here adds a line for each step to a file, its process id and the number of the step, and
goes on from what the file holds. Had two of them run at once, numbers would come twice.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import psutil
import pytest

from pipelines.processes import environment, is_dvc
from tests.pipelines.project import Project, wait_for
from tests.pipelines.servers import PrefectServer, api, runs, states_of_tasks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PATIENCE = 300
FLOW = ("-m", "pipelines.flows.train")
TRAIN = """
import os, subprocess, time
from pathlib import Path
from pipelines.harness import run_stage

def main(params, arguments):
    journal = Path("runs/steps")
    journal.parent.mkdir(exist_ok=True)
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    step = len(journal.read_text().splitlines()) if journal.exists() else 0
    enough = False
    while not enough:
        enough = Path("runs/enough").exists()
        step += 1
        with journal.open("a") as file:
            file.write(f"{os.getpid()} {step}\\n")
        time.sleep(0.2)
    Path("model").write_text("trained")

run_stage("train", main)
"""
PIPELINE = """
stages:
  train: {cmd: python train.py, deps: [train.py], outs: [model]}
  after: {cmd: cp model copy, deps: [model], outs: [copy]}
"""


class Training:
    """A project that trains until it is enough, and what its journal says."""

    def __init__(self, project: Project) -> None:
        self.project = project
        (project.root / "train.py").write_text(TRAIN, encoding="utf-8")
        project.stages(PIPELINE)

    def steps(self) -> list[tuple[int, int]]:
        """Return process id and number of each step taken."""
        path = self.project.root / "runs" / "steps"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(pid), int(step)) for pid, step in map(str.split, lines)]

    def until_it_trains(self) -> int:
        """Wait for some steps of a process that lives; return its id."""

        def trainer() -> int:
            pids = [pid for pid, _ in self.steps()]
            alive = pids and pids[-3:] == pids[-1:] * 3 and psutil.pid_exists(pids[-1])
            return pids[-1] if alive else 0

        return int(str(wait_for(trainer, PATIENCE)))

    def enough(self) -> None:
        (self.project.root / "runs" / "enough").touch()

    def demand_one_after_the_other(self, processes: int) -> None:
        """Every step was taken once, by so many processes, none beside another."""
        steps = self.steps()
        assert [step for _, step in steps] == list(range(1, len(steps) + 1))
        assert len([pid for pid, _ in groupby(pid for pid, _ in steps)]) == processes
        assert (self.project.root / "copy").read_text() == "trained"

    def until_only(self, *kept: int) -> None:
        """Wait until no process of the project lives, but `kept` and those above a run."""

        def others() -> list[psutil.Process]:
            return [one for one in self.project.alive() if one.pid not in kept]

        wait_for(lambda: not others(), PATIENCE)


@pytest.fixture
def training(project: Project) -> Training:
    return Training(project)


# --- from a work pool -------------------------------------------------------------------------


class Pool:
    """A process work pool with a deployment of the flow, and its worker."""

    def __init__(self, project: Project, url: str) -> None:
        self.project, self.url = project, url
        self.name = f"pool-{os.getpid()}-{project.root.parent.name}"
        flow = api(url, "/flows/", {"name": "train"})
        api(url, "/work_pools/", {"name": self.name, "type": "process"})
        deployment = {
            "name": self.name,
            "flow_id": flow["id"],
            "entrypoint": "pipelines.flows.definitions.train",
            "parameters": {"root": str(project.root)},
            "work_pool_name": self.name,
        }
        self._deployment = api(url, "/deployments/", deployment)["id"]
        project.environment["PREFECT_API_URL"] = url
        self.worker = self.start_worker()

    def start_worker(self) -> subprocess.Popen[bytes]:
        self.worker = self.project.start(
            *("-m", "prefect", "worker", "start", "--pool", self.name, "--type", "process"),
            log=self.project.root.parent / "worker.log",
        )
        return self.worker

    def trigger(self) -> str:
        return api(self.url, f"/deployments/{self._deployment}/create_flow_run", {})["id"]

    def state(self, run: str) -> str:
        return api(self.url, f"/flow_runs/{run}")["state"]["name"]

    def until(self, run: str, *names: str) -> str:
        def there() -> str:
            state = self.state(run)
            return state if state in names else ""

        return str(wait_for(there, PATIENCE))


@pytest.fixture
def pool(project: Project, prefect_server: str) -> Pool:
    return Pool(project, prefect_server)


def flow_process(project: Project) -> int:
    """Return the process that the flow runs in: dvc's nearest ancestor, past the tether."""
    dvc = dvc_process(project)
    return psutil.Process(dvc).ppid()


def dvc_process(project: Project) -> int:
    return next(one.pid for one in project.alive() if is_dvc(one))


@pytest.mark.parametrize(
    ("level", "states"),
    [
        ("stage", {"Killed"}),
        ("dvc", {"Killed"}),
        ("flow", {"Crashed"}),
        ("worker", {"Crashed"}),
    ],
)
def test_sigkill_at_each_level(
    training: Training, pool: Pool, level: str, states: set[str]
) -> None:
    run = pool.trigger()
    stage = training.until_it_trains()
    project = training.project
    victim = {
        "stage": lambda: stage,
        "dvc": lambda: dvc_process(project),
        "flow": lambda: flow_process(project),
        "worker": lambda: pool.worker.pid,
    }[level]()
    assert "PREFECT__FLOW_RUN_ID" in environment(psutil.Process(stage))
    os.kill(victim, signal.SIGKILL)

    pool.until(run, *states)
    if level == "worker":
        pool.worker.wait()
        training.until_only()
        pool.start_worker()
    training.until_only(pool.worker.pid)
    training.enough()
    again = pool.trigger()
    pool.until(again, "Completed")
    training.demand_one_after_the_other(processes=2)
    training.until_only(pool.worker.pid)


def test_cancelling_ends_every_process_and_is_called_so(training: Training, pool: Pool) -> None:
    run = pool.trigger()
    training.until_it_trains()
    api(pool.url, f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    pool.until(run, "Cancelled")
    training.until_only(pool.worker.pid)
    training.enough()
    pool.until(pool.trigger(), "Completed")
    training.demand_one_after_the_other(processes=2)


# --- the server -------------------------------------------------------------------------------


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[PrefectServer]:
    """A server that may be killed."""
    home = tmp_path / "server"
    home.mkdir()
    server = PrefectServer(home)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def test_server_restarted_in_the_middle_the_run_completes(
    training: Training, own_server: PrefectServer
) -> None:
    flow = training.project.start(*FLOW, "--server", own_server.url)
    training.until_it_trains()
    own_server.kill()
    own_server.start()
    training.until_it_trains()
    training.enough()
    assert flow.wait(PATIENCE) == 0
    training.demand_one_after_the_other(processes=1)
    training.until_only()
    (run,) = runs(own_server.url)
    assert run["state"]["name"] == "Completed"


def test_server_gone_for_good_the_stages_end_well_and_so_does_the_next_run(
    training: Training, own_server: PrefectServer
) -> None:
    # Of five, which take minutes: whoever waits for a server has the time, a test has not.
    training.project.environment["PREFECT_CLIENT_MAX_RETRIES"] = "1"
    log = training.project.root.parent / "flow.log"
    flow = training.project.start(*FLOW, "--server", own_server.url, log=log)
    training.until_it_trains()
    own_server.kill()
    training.enough()
    assert flow.wait(PATIENCE * 3) == 1
    training.demand_one_after_the_other(processes=1)
    training.until_only()
    assert "the Prefect server has gone" in log.read_text()

    own_server.start()
    training.project.python(*FLOW, "--server", own_server.url)
    training.demand_one_after_the_other(processes=1)
    wait_for(lambda: runs(own_server.url)[0]["state"]["name"] == "Completed", PATIENCE)
    run = runs(own_server.url)[0]["id"]
    wait_for(
        lambda: (
            states_of_tasks(own_server.url, run) == {"train": "Unchanged", "after": "Unchanged"}
        ),
        PATIENCE,
    )
