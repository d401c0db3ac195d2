"""What a Prefect server is shown of a run: states by name, artifacts, log levels, tags, its end."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.project import Project, wait_for
from tests.pipelines.servers import (
    Postgres,
    PrefectServer,
    api,
    artifacts,
    runs,
    states_of_tasks,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PATIENCE = 240
FLOW = ("-m", "pipelines.flows.train", "--server")
PIPELINE = """
stages:
  good:
    cmd: python stage.py good 0 metrics steps
    outs: [good, page]
    metrics: [{metrics/good.json: {cache: false}}]
    plots: [picture.png]
  bad: {cmd: python stage.py bad 0 DataError, outs: [bad]}
  diverged: {cmd: python stage.py diverged 0 DivergedError, outs: [diverged]}
  killed: {cmd: python stage.py killed 0 suicide, outs: [killed]}
  after: {cmd: python stage.py after 0, deps: [bad], outs: [after]}
"""


def newest(url: str, known: set[str]) -> dict[str, Any]:
    """Return the run that was not known before, once it has ended."""

    def there() -> dict[str, Any] | None:
        found = [run for run in runs(url) if run["id"] not in known]
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return next((run for run in found if run["state"]["type"] in final), None)

    found = wait_for(there, PATIENCE)
    assert isinstance(found, dict)
    return found


def test_what_the_server_is_shown(project: Project, prefect_server: str) -> None:
    project.stages(PIPELINE)
    (project.root / "metrics").mkdir()
    (project.root / "metrics/good.json").write_text('{"accuracy": 0.5}')
    project.commit()
    known = {run["id"] for run in runs(prefect_server)}
    done = project.python(*FLOW, prefect_server, check=False)
    assert done.returncode == 3, done.stderr
    assert "bad: bad data: why DataError was raised" in done.stderr
    assert not project.alive()

    run = newest(prefect_server, known)
    assert (run["state"]["name"], run["state"]["type"]) == ("InvalidData", "FAILED")
    assert run["state"]["message"].endswith("why DataError was raised (exit code 3)")
    states = {"good": "Completed", "bad": "InvalidData", "diverged": "Diverged", "killed": "Killed"}
    wait_for(lambda: states_of_tasks(prefect_server, run["id"]) == states, PATIENCE)

    shown = artifacts(prefect_server, run["id"])
    assert {
        "good-metrics",
        "good-pictures",
        "good-page",
        "good-progress",
        "summary",
    } == shown.keys()
    assert '"metric": "good.accuracy", "value": 0.75, "last commit": 0.5' in shown["good-metrics"]
    assert '"change": 0.25' in shown["good-metrics"]
    assert "data:image/png;base64,UE5HIGFzIGl0IHdlcmU=" in shown["good-pictures"]
    assert f"{project.root}/page/index.html" in shown["good-page"]
    assert shown["good-progress"] == 100.0
    assert '"stage": "after", "outcome": "skipped"' in shown["summary"]

    def errors() -> list[str]:
        chosen = {"flow_run_id": {"any_": [run["id"]]}, "level": {"ge_": 40}}
        found = api(prefect_server, "/logs/filter", {"logs": chosen})
        return [one["message"] for one in found]

    wait_for(lambda: any("why DataError was raised" in line for line in errors()), PATIENCE)


def test_a_limit_on_a_tag_holds(project: Project, prefect_server: str) -> None:
    """Two workers, two stages with the tag, one place for it: they never overlap."""
    project.stages(
        "stages:\n"
        "  a: {cmd: date +%s.%N > a && sleep 3 && date +%s.%N >> a, outs: [a]}\n"
        "  b: {cmd: date +%s.%N > b && sleep 3 && date +%s.%N >> b, outs: [b]}\n"
    )
    tag = f"gpu-{project.root.parent.name}"
    params = project.root / "params.yaml"
    stages = f"stages: {{a: {{tags: [{tag}]}}, b: {{tags: [{tag}]}}}}"
    text = params.read_text()
    assert "\n  stages: {} " in text
    params.write_text(text.replace("\n  stages: {} ", f"\n  {stages} "))
    api(prefect_server, "/concurrency_limits/", {"tag": tag, "concurrency_limit": 1})
    project.python(*FLOW, prefect_server, "--workers", "2")
    first, second = sorted(
        [float(time) for time in (project.root / name).read_text().split()] for name in "ab"
    )
    assert first[1] <= second[0]


@pytest.fixture(scope="module")
def on_postgres(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[PrefectServer, Postgres]]:
    if why := Postgres.missing():
        pytest.skip(why)
    # Not below pytest's own folder, which only its owner may enter.
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    folder.chmod(0o755)
    database = Postgres(folder / "postgres")
    server = None
    try:
        database.start()
        home = tmp_path_factory.mktemp("on-postgres")
        server = PrefectServer(home, PREFECT_API_DATABASE_CONNECTION_URL=database.url)
        server.start()
        yield server, database
    finally:
        if server:
            server.kill()
        database.stop()
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_the_flow_with_a_server_on_postgres(
    project: Project, on_postgres: tuple[PrefectServer, Postgres]
) -> None:
    server, database = on_postgres
    project.stages("stages: {s: {cmd: python stage.py s 0, outs: [s]}}")
    project.python(*FLOW, server.url)
    run = newest(server.url, set())
    assert run["state"]["name"] == "Completed"
    wait_for(lambda: states_of_tasks(server.url, run["id"]) == {"s": "Completed"}, PATIENCE)
    assert database.ask("select count(*) from flow_run where state_name = 'Completed'") == "1"


def test_parameters_at_fault_are_a_state_of_their_own(
    project: Project, prefect_server: str
) -> None:
    project.stages("stages: {s: {cmd: python stage.py s 0, outs: [s]}}")
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace("\nseed: 0", "\nsede: 0"))
    known = {run["id"] for run in runs(prefect_server)}
    done = project.python(*FLOW, prefect_server, check=False)
    assert done.returncode == 2
    assert "did you mean 'seed'?" in done.stderr
    assert newest(prefect_server, known)["state"]["name"] == "InvalidParams"
