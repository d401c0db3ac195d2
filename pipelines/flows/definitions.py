"""The flows: the pipeline with every stage of dvc.yaml a task, and retraining around it.

Each also runs as a plain function, `train.fn(...)`, with no server: then the tasks are plain
calls too. Nothing here may run as `__main__`: such a flow would be sent to a server by value.
"""

import contextvars
import logging
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed

from mae.errors import Interrupted, MaestroError
from pipelines.dvc_graph import read_graph, with_upstream
from pipelines.graph_run import run_graph, summary
from pipelines.outcome import StageRun, first_failure
from pipelines.repository import require_clean
from pipelines.retraining import judge, put_to_use, record_decision, retrain_params, to_force
from pipelines.runner import reproduce

LOG = logging.getLogger(__name__)


class StageFailed(MaestroError):
    """A stage did not come to a good end; `run` says how."""

    def __init__(self, run: StageRun) -> None:
        self.run = run
        self.exit_code = run.exit_code or 1
        super().__init__(f"{run.stage}: {run.outcome}: {run.message}")


@flow(name="train", persist_result=False)
def train(root: str = ".", workers: int = 1, stages: list[str] | None = None) -> list[StageRun]:
    """Bring the pipeline in folder `root` up to date, `workers` stages at a time.

    Raises StageFailed for the failure that decides, after everything that could run has run.
    """
    stop = threading.Event()
    with stopping_on_signals(stop):
        runs = run_stages(Path(root), workers, stop, stages or ())
    show_summary(runs)
    if failed := first_failure(runs):
        raise StageFailed(failed)
    if stop.is_set():
        raise Interrupted("stopped before all stages had run: run it again to continue")
    return runs


@flow(name="retrain", persist_result=False)
def retrain(root: str = ".") -> State[Any] | None:
    """Retrain the project in folder `root` and let the better encoder serve.

    A run that starts too long after it was due is skipped. Raises StageFailed when the pipeline
    fails; the champion stays then. Raises MaestroError when files are uncommitted: the new
    version could not be had again.
    """
    folder = Path(root)
    log = get_run_logger() if FlowRunContext.get() else LOG
    params = retrain_params(folder)
    late = _lateness()
    if late > timedelta(minutes=params.max_late_minutes):
        log.warning("due %s ago, more than %g minutes: skipped", late, params.max_late_minutes)
        return Completed(name="Skipped", message=f"due {late} ago")
    require_clean(folder, except_results=True)
    stop = threading.Event()
    with stopping_on_signals(stop):
        force = to_force(read_graph(folder), params)
        runs = run_stages(folder, params.workers, stop, force=force)
    show_summary(runs)
    if failed := first_failure(runs):
        raise StageFailed(failed)
    if stop.is_set():
        raise Interrupted("stopped before all stages had run: run it again to continue")
    decision = judge(folder, params)
    written = record_decision(folder, decision)
    if decision.promote:
        version = put_to_use(folder, params, decision)
        log.info("%s@%s now serves: %s", version.artifact, version.version, decision.reason)
    else:
        log.info("the champion stays: %s", decision.reason)
    log.info("every number behind this: %s", written)
    return None


def _lateness() -> timedelta:
    """Return how long ago the current flow run was due; zero outside a flow run."""
    if not FlowRunContext.get():
        return timedelta()
    return datetime.now(UTC) - runtime.flow_run.scheduled_start_time


def run_stages(
    root: Path,
    workers: int,
    stop: threading.Event,
    stages: Collection[str] = (),
    force: Collection[str] = (),
) -> list[StageRun]:
    """Run the graph of `root`, or what `stages` need of it, as tasks of the current flow run.

    `force` names stages to run although DVC sees no change. Without a flow run around it, the
    tasks are plain calls and no server is involved.
    """
    graph = read_graph(root)
    if stages:
        graph = with_upstream(graph, stages)
    call = stage_task if FlowRunContext.get() else stage_task.fn
    context = contextvars.copy_context()  # threads would not see the flow run

    def run(stage: str) -> StageRun:
        try:
            return context.copy().run(call, str(root), stage, stop, stage in force)
        except StageFailed as failure:
            return failure.run

    return run_graph(graph, run, stop, workers)


# DVC is the only cache: a second one would answer from memory after the data have changed.
@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def stage_task(root: str, stage: str, stop: threading.Event, force: bool) -> StageRun:
    """Reproduce one stage. Raises StageFailed, so that Prefect shows it as failed."""
    run = reproduce(Path(root), stage, _printer(stage), stop, force=force)
    if not run.outcome.good:
        raise StageFailed(run)
    return run


def _printer(stage: str) -> Callable[[str], None]:
    """Return what shows a line of a stage: the run's log on a server, else standard output."""
    if FlowRunContext.get():
        return get_run_logger().info
    return lambda line: print(f"{stage} | {line}", flush=True)


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Let SIGINT and SIGTERM set `stop`, so that stages can save and the summary still appears.

    Inside a flow run, or outside the main thread, signals stay with Prefect.
    """
    if FlowRunContext.get() or threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        LOG.warning("%s: stages are asked to stop", signal.Signals(number).name)
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show_summary(runs: list[StageRun]) -> None:
    text = f"\n{summary(runs)}"
    if FlowRunContext.get():
        get_run_logger().info(text)
    else:
        print(text, flush=True)
