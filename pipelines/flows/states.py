"""How a stage ended, as Prefect states: automations and people go by their names."""

from collections.abc import Sequence
from typing import Any

from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext

from mae.errors import Interrupted, MaestroError
from pipelines.outcome import BY_EXIT_CODE, Outcome, StageRun, first_failure

STATES: dict[Outcome, tuple[StateType, str]] = {
    Outcome.DONE: (StateType.COMPLETED, "Completed"),
    Outcome.RESTORED: (StateType.COMPLETED, "Restored"),
    Outcome.UNCHANGED: (StateType.COMPLETED, "Unchanged"),
    Outcome.INVALID_PARAMS: (StateType.FAILED, "InvalidParams"),
    Outcome.BAD_DATA: (StateType.FAILED, "InvalidData"),
    Outcome.BAD_CHECKPOINT: (StateType.FAILED, "BadCheckpoint"),
    Outcome.DIVERGED: (StateType.FAILED, "Diverged"),
    Outcome.CHANGED: (StateType.FAILED, "Changed"),
    Outcome.NO_SPACE: (StateType.FAILED, "NoSpace"),
    Outcome.TIMED_OUT: (StateType.FAILED, "TimedOut"),
    Outcome.BUSY: (StateType.FAILED, "Busy"),
    Outcome.FAILED: (StateType.FAILED, "Failed"),
    Outcome.INTERRUPTED: (StateType.CRASHED, "Preempted"),
    Outcome.KILLED: (StateType.CRASHED, "Killed"),
    Outcome.SKIPPED: (StateType.CANCELLED, "Skipped"),
}


class StageFailed(MaestroError):
    """A stage did not come to a good end; `run` says how."""

    def __init__(self, run: StageRun) -> None:
        self.run = run
        self.exit_code = run.exit_code or 1
        super().__init__(f"{run.stage}: {run.outcome}: {run.message}")


def state_of(run: StageRun) -> State[Any]:
    """Return the state that a stage which ended so is to have."""
    kind, name = STATES[run.outcome]
    if run.outcome.good:
        return State(type=kind, name=name, data=run)
    failure = StageFailed(run)
    message = f"{failure} (exit code {failure.exit_code})"
    return State(type=kind, name=name, message=message, data=failure)


def demand_success(runs: Sequence[StageRun], *, stopped: bool) -> None:
    """Raise what decides that the whole is no success: StageFailed, or Interrupted."""
    if failed := first_failure(runs):
        raise StageFailed(failed)
    if stopped:
        raise Interrupted("stopped before all stages had run: run it again to continue")


def ended(failure: MaestroError) -> State[Any]:
    """Return the state in which a flow is to end for `failure`. Raises it outside a flow run."""
    if not FlowRunContext.get():
        raise failure
    if isinstance(failure, StageFailed):
        return state_of(failure.run)
    kind, name = STATES[BY_EXIT_CODE.get(failure.exit_code, Outcome.FAILED)]
    message = f"{failure} (exit code {failure.exit_code})"
    return State(type=kind, name=name, message=message, data=failure)
