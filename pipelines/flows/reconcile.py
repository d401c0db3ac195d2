"""Sets right what a Prefect server believes of runs whose processes are gone.

A run that was killed with its server process stays "Running" and holds the only concurrency slot
for ever; runs that came due while nobody served would all start at once.
"""

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from pipelines.processes import marked

LOG = logging.getLogger(__name__)
START_SECONDS = 10.0  # between a run being claimed and its process being there
UNDER_WAY = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


def reconcile(deployment: str, max_late: timedelta) -> None:
    """Mark as crashed the runs of `deployment` without a process on this machine, cancel the late.

    For deployments that are served from one machine only: runs of a work pool may have their
    processes anywhere, and are found lost by the automation of pipelines/automations.py.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            return
        if found.work_pool_name:
            LOG.warning("'%s' was in work pool '%s'", deployment, found.work_pool_name)
            return
        identity = found.id
        for run in _without_process(client, identity):
            LOG.warning("run '%s' has lost its process: marked as crashed", run.name)
            crashed: State[Any] = Crashed(message="its process was gone when serving began")
            client.set_flow_run_state(run.id, crashed, force=True)
        for run in _late(client, identity, max_late):
            LOG.warning("run '%s' came due at %s: skipped", run.name, run.expected_start_time)
            cancelled: State[Any] = Cancelled(message="came due while nobody served")
            client.set_flow_run_state(run.id, cancelled, force=True)


def _without_process(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    def lost() -> list[FlowRun]:
        runs = _find(client, deployment, UNDER_WAY)
        return [run for run in runs if not marked(PREFECT__FLOW_RUN_ID=str(run.id))]

    first = {run.id for run in lost()}
    if not first:
        return []
    time.sleep(START_SECONDS)
    return [run for run in lost() if run.id in first]


def _late(client: SyncPrefectClient, deployment: UUID, max_late: timedelta) -> list[FlowRun]:
    limit = datetime.now(UTC) - max_late
    runs = _find(client, deployment, [StateType.SCHEDULED])
    return [run for run in runs if run.expected_start_time and run.expected_start_time < limit]


def _find(client: SyncPrefectClient, deployment: UUID, states: list[StateType]) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
        )
    )
