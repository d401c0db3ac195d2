"""The pipeline as a flow, every stage of dvc.yaml a task.

It also runs as a plain function, `train.fn(...)`, with no server: then the tasks are plain
calls too. Nothing here may run as `__main__`: such a flow would be sent to a server by value.
"""

import contextvars
import logging
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger

from mae.errors import MaestroError
from mae.params import FlowsParams, StagePolicy, read_params
from pipelines.dvc_graph import StageNode, read_graph, with_upstream
from pipelines.edits import EditedError, Stated, edited, stated
from pipelines.flows import artifacts
from pipelines.flows.states import demand_success, ended, state_of
from pipelines.graph_run import run_graph, summary
from pipelines.lifeline import end_with_worker
from pipelines.outcome import Outcome, StageRun, log_level
from pipelines.policies import check_policies, policy_of
from pipelines.progress import Progress
from pipelines.runner import reproduce

LOG = logging.getLogger(__name__)


@flow(name="train", persist_result=False)
def train(
    root: str = ".", workers: int | None = None, stages: list[str] | None = None
) -> list[StageRun] | State[Any]:
    """Bring the pipeline in folder `root` up to date.

    `workers` (stages at a time) takes the place of params.yaml's. Raises StageFailed for the
    failure that decides, after everything that could run has run; on a server the run ends in
    the state that tells this failure from others.
    """
    try:
        return _train(Path(root), workers, stages or ())
    except MaestroError as failure:
        return ended(failure)


def _train(root: Path, workers: int | None, stages: Collection[str]) -> list[StageRun]:
    stop = threading.Event()
    with stopping_on_signals(stop):
        params = flows_params(root)
        if workers:
            params = params.model_copy(update={"workers": workers})
        runs = run_stages(root, params, stop, stages)
    show_summary(runs)
    demand_success(runs, stopped=stop.is_set())
    return runs


def flows_params(root: Path) -> FlowsParams:
    """Return the `flows` section of the project's params.yaml."""
    return read_params(root / "params.yaml").flows


def run_stages(
    root: Path,
    flows: FlowsParams,
    stop: threading.Event,
    stages: Collection[str] = (),
    force: Collection[str] = (),
) -> list[StageRun]:
    """Run the graph of `root`, or what `stages` need of it, as tasks of the current flow run.

    `force` names stages to run although DVC sees no change. Without a flow run around it, the
    tasks are plain calls and no server is involved. Raises MaestroError for a stage, ParamsError
    for a policy, that dvc.yaml knows nothing of, before anything runs.
    """
    begun = stated(root)
    graph = read_graph(root)
    check_policies(graph, flows)
    if stages:
        graph = with_upstream(graph, stages)
    nodes = {node.name: node for node in graph}
    recorded = FlowRunContext.get() is not None
    context = contextvars.copy_context()  # threads would not see the flow run

    def run(stage: str) -> StageRun:
        policy = policy_of(stage, flows)
        job = _Job(root, nodes[stage], policy, begun, stop, stage in force)
        return context.copy().run(_as_task, job) if recorded else job()

    return run_graph(graph, run, stop, flows.workers)


def _as_task(job: "_Job") -> StageRun:
    """Do `job` in a task run; trouble with the server does not change how the stage ended."""
    ends: list[StageRun] = []

    def kept() -> StageRun:
        ends.append(job())
        return ends[0]

    try:
        stage_task.with_options(tags=job.policy.tags)(job.root, job.node, kept)
    except Exception as error:
        LOG.warning("%s: the Prefect server could not be told: %s", job.node.name, error)
        if not ends:
            message = f"Prefect did not let it start: {error}"
            return StageRun(job.node.name, Outcome.FAILED, exit_code=1, message=message)
    return ends[0]


# DVC is the only cache: a second one would answer from memory after the data have changed.
@task(name="stage", task_run_name="{node.name}", cache_policy=NO_CACHE, persist_result=False)
def stage_task(root: Path, node: StageNode, job: Callable[[], StageRun]) -> State[Any]:
    """Do `job`, the work of a stage, show what came of it, and end in the state that says how."""
    run = job()
    if run.outcome.good:
        artifacts.show_stage(root, node)
    return state_of(run)


@dataclass(frozen=True)
class _Job:
    """One stage of a run that `begun` with these files, to be done as its policy says."""

    root: Path
    node: StageNode
    policy: StagePolicy
    begun: Stated
    stop: threading.Event
    force: bool

    def __call__(self) -> StageRun:
        """Run the stage, again where that may help, as often as its policy allows."""
        started, attempt = time.monotonic(), 1
        wait, retries = self.policy.retry_seconds, self.policy.retries
        # Not Prefect's retries: these also work with no server, and a stop ends their waiting.
        while True:
            run = self._attempt()
            if attempt > retries or not run.outcome.worth_another_try:
                return replace(run, seconds=time.monotonic() - started, attempts=attempt)
            _logger().warning(
                "%s: %s (%s): again in %g s, %d of %d retries",
                *(run.stage, run.outcome, run.message, wait, attempt, retries),
            )
            self.stop.wait(wait)
            attempt += 1

    def _attempt(self) -> StageRun:
        name = self.node.name
        if names := edited(self.begun, stated(self.root)):
            message = (
                f"{', '.join(names)} edited since this run began: run it again, and only what "
                "the edit changes runs anew"
            )
            return StageRun(name, Outcome.CHANGED, 0.0, EditedError.exit_code, message)
        minutes = self.policy.timeout_minutes
        timeout = None if minutes is None else 60 * minutes
        with _listener(name) as on_line:
            try:
                return reproduce(
                    self.root, name, on_line, self.stop, force=self.force, timeout=timeout
                )
            except MaestroError as error:  # another dvc is at work on damaged locks
                return StageRun(name, Outcome.BUSY, 0.0, error.exit_code, str(error))


@contextmanager
def _listener(stage: str) -> Iterator[Callable[[str], None]]:
    """Yield what shows a line of a stage: the run's log on a server, else standard output."""
    if not FlowRunContext.get():
        yield lambda line: print(f"{stage} | {line}", flush=True)
        return
    log, progress = get_run_logger(), Progress(artifacts.progress_teller(stage))

    def on_line(line: str) -> None:
        log.log(logging.getLevelNamesMapping().get(log_level(line), logging.INFO), line)
        progress.see(line)

    try:
        yield on_line
    finally:
        progress.close()


def _logger() -> Any:
    return get_run_logger() if FlowRunContext.get() else LOG


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Let SIGINT and SIGTERM set `stop`, so that stages can save and the summary still appears.

    Inside a flow run signals stay with Prefect, and the run ends with the worker that started
    it; outside the main thread, where no signal comes, nothing is done.
    """
    if FlowRunContext.get():
        end_with_worker()
        yield
        return
    if threading.current_thread() is not threading.main_thread():
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
    """Show how each stage ended: in the log and as an artifact on a server, else on the screen."""
    text = f"\n{summary(runs)}"
    if not FlowRunContext.get():
        print(text, flush=True)
        return
    get_run_logger().info(text)
    artifacts.show_summary(runs)
