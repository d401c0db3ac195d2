"""What the server believes of runs, set right when serving begins."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Pending, Running, Scheduled

import pipelines.flows.reconcile
from pipelines.flows.reconcile import reconcile

pytestmark = pytest.mark.slow


@pytest.fixture
def client(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setattr(pipelines.flows.reconcile, "START_SECONDS", 0.2)
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as it:
        yield it


class Deployment:
    def __init__(self, client: SyncPrefectClient, name: str, **options: Any) -> None:
        self.client = client
        self.name = f"reconciled/{name}"
        flow = client.create_flow_from_name("reconciled")
        self.id = client.create_deployment(flow_id=flow, name=name, **options)

    def run(self, *states: Any) -> UUID:
        run = self.client.create_flow_run_from_deployment(self.id, state=states[0])
        for state in states[1:]:
            self.client.set_flow_run_state(run.id, state)
        return run.id

    def state(self, run: UUID) -> str:
        state = self.client.read_flow_run(run).state
        assert state is not None and state.name is not None
        return state.name


def started() -> tuple[Any, ...]:
    return Scheduled(), Pending(), Running()


def due(**ago: float) -> Any:
    return Scheduled(scheduled_time=datetime.now(UTC) - timedelta(**ago))


def test_lost_runs_crash_late_ones_are_cancelled_and_others_stay(
    client: SyncPrefectClient,
) -> None:
    ours, theirs = Deployment(client, "ours"), Deployment(client, "theirs")
    lost, alive, claimed = ours.run(*started()), ours.run(*started()), ours.run(Pending())
    late, due_now, planned = (
        ours.run(due(minutes=90)),
        ours.run(due(minutes=5)),
        ours.run(due(days=-1)),
    )
    untouched = [theirs.run(*started()), theirs.run(due(minutes=90))]
    before = [theirs.state(run) for run in untouched]
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        env={"PREFECT__FLOW_RUN_ID": str(alive)},
    )
    try:
        reconcile(ours.name, timedelta(minutes=60))
    finally:
        process.communicate()
    assert ours.state(lost) == ours.state(claimed) == "Crashed"
    assert ours.state(late) == "Cancelled"
    assert ours.state(alive) == "Running"
    assert ours.state(due_now) in ("Scheduled", "Late")
    assert ours.state(planned) == "Scheduled"
    assert [theirs.state(run) for run in untouched] == before


def test_runs_of_a_work_pool_are_left_alone(client: SyncPrefectClient) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    client.create_work_pool(WorkPoolCreate(name="elsewhere", type="process"))
    pooled = Deployment(client, "pooled", work_pool_name="elsewhere")
    run = pooled.run(*started())
    reconcile(pooled.name, timedelta(minutes=60))
    assert pooled.state(run) == "Running"


def test_what_is_not_deployed_is_nothing_to_set_right(client: SyncPrefectClient) -> None:
    reconcile("reconciled/nothing", timedelta(minutes=60))
