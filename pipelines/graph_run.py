"""Runs a graph of stages, each after all it needs, at most `workers` at a time."""

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from pipelines.dvc_graph import StageNode
from pipelines.outcome import Outcome, StageRun


def run_graph(
    graph: list[StageNode],
    run: Callable[[str], StageRun],
    stop: threading.Event,
    workers: int = 1,
) -> list[StageRun]:
    """Call `run(stage)` in threads and return how every stage of `graph` ended, in its order.

    A failure keeps back only what needs that stage; an interruption, or `stop`, all the rest.
    Should an exception strike the caller meanwhile, `stop` is set, so that `run` comes back.
    """
    runs: dict[str, StageRun] = {}
    running: dict[Future[StageRun], str] = {}
    with ThreadPoolExecutor(workers, thread_name_prefix="stage") as pool:
        try:
            while waiting := [node for node in graph if node.name not in runs]:
                idle = [node for node in waiting if node.name not in running.values()]
                for node in idle:
                    if why := _obstacle(node, runs, stop):
                        runs[node.name] = StageRun(node.name, Outcome.SKIPPED, message=why)
                    elif len(running) < workers and all(name in runs for name in node.needs):
                        running[pool.submit(run, node.name)] = node.name
                if running:
                    _collect(running, runs, stop)
        except BaseException:
            stop.set()
            raise
    return [runs[node.name] for node in graph]


def _obstacle(node: StageNode, runs: dict[str, StageRun], stop: threading.Event) -> str:
    bad = [name for name in node.needs if name in runs and not runs[name].outcome.good]
    if bad:
        return f"needs {', '.join(bad)}"
    return "the run was stopped" if stop.is_set() else ""


def _collect(
    running: dict[Future[StageRun], str], runs: dict[str, StageRun], stop: threading.Event
) -> None:
    """Wait until a stage ends and note how."""
    for done in wait(running, return_when=FIRST_COMPLETED).done:
        ended = runs[running.pop(done)] = done.result()
        if ended.outcome == Outcome.INTERRUPTED:
            stop.set()


def summary(runs: list[StageRun]) -> str:
    """Return a table for people: stage, outcome, seconds, and why where there is a reason."""
    width = max(len(run.stage) for run in runs)
    lines = [
        f"{run.stage:<{width}}  {run.outcome:<18}  {run.seconds:8.1f} s  "
        + (f"{run.attempts} attempts  " if run.attempts > 1 else "")
        + run.message.partition("\n")[0]
        for run in runs
    ]
    return "\n".join(line.rstrip() for line in lines)
