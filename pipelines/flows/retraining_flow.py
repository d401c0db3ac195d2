"""Retraining as a flow: anything new? the pipeline, the gate, what the decision asks for.

It also runs as a plain function, `retrain.fn(...)`, with no server. Nothing here may run as
`__main__`: such a flow would be sent to a server by value.
"""

import errno
import logging
import threading
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.states import Completed

from mae.errors import DataError, DivergedError, Interrupted, MaestroError
from mae.params import Params
from mae.params.orchestration import Event
from pipelines import news, promotion
from pipelines.alone import UnderWay, alone
from pipelines.decision import Approval, Decision
from pipelines.dvc_graph import read_graph
from pipelines.flows.definitions import run_stages, show_summary, stopping_on_signals
from pipelines.flows.states import StageFailed, demand_success, ended
from pipelines.notify import notify
from pipelines.outcome import Outcome
from pipelines.promotion import Candidate
from pipelines.retraining import judge, new_folder, report_decision
from pipelines.site import Ending, Site, committed_params, open_site
from pipelines.worktree import HOME

LOG = logging.getLogger(__name__)

ANSWER_HOURS = 20  # so that a run of the next night can take up what is newer


@flow(name="retrain", persist_result=False)
def retrain(root: str = ".", anyway: bool = False) -> State[Any] | Ending:
    """Retrain the project in folder `root` and let the better encoder serve.

    A run that starts too long after it was due, or while another is at work, is skipped.
    `anyway`: train although the sources are as they were. Raises a MaestroError when something
    fails, on a server the run ends in the state that tells it from others; the champion stays.
    """
    folder, stop = Path(root).resolve(), threading.Event()
    params = None
    try:
        with stopping_on_signals(stop):
            params = committed_params(folder)
            ending = _late(params) or _alone(folder, stop, anyway)
    except UnderWay as held:
        if not FlowRunContext.get():
            raise
        ending = Ending("Skipped", str(held))
    except (MaestroError, OSError) as error:
        failure = _for_people(error)
        _tell_failure(folder, failure, params)
        return ended(failure)
    _log().info("%s", ending.message)
    if not FlowRunContext.get():
        return ending
    name = "Completed" if ending.name == "Promoted" else ending.name
    return Completed(name=name, message=ending.message)


def _log() -> Any:
    return get_run_logger() if FlowRunContext.get() else LOG


def _for_people(error: Exception) -> MaestroError:
    if isinstance(error, MaestroError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MaestroError(
            f"the disk is full ({error}): make room (docs/operations.md) and run again; the "
            "champion serves as before"
        )
    raise error


def _late(params: Params) -> Ending | None:
    if not FlowRunContext.get():
        return None
    late = datetime.now(UTC) - runtime.flow_run.scheduled_start_time
    limit = timedelta(minutes=params.retrain.max_late_minutes)
    return Ending("Skipped", f"due {late} ago, more than {limit}") if late > limit else None


# --- one retraining -----------------------------------------------------------------------------


def _alone(main: Path, stop: threading.Event, anyway: bool) -> Ending:
    with alone(main / HOME):
        site = open_site(main, _log().info, stop)
        promotion.settle(site)
        promotion.publish_or_say(site)
        sources = news.look(site)
        waits = site.params.retrain.wait_for_data and not anyway
        seen = news.seen_before(site, sources) if waits else None
        if seen is not None:
            ending = _nothing_new(site, f"the sources are as they were; then, {seen}")
        else:
            if promotion.waiting(site):
                _log().info("the challenger that waited for a person is superseded")
                promotion.forget_candidate(site)
            ending = _trained(site, waits)
        if seen is None or ending.name != "NothingNew":
            news.remember(site, sources, ending)
        return ending


def _nothing_new(site: Site, why: str) -> Ending:
    candidate = promotion.waiting(site)
    if candidate is None:
        return Ending("NothingNew", why)
    decision = Decision.read(site.home / candidate.run / "decision.json")
    return _asked(site, decision, candidate)


def _trained(site: Site, waits: bool) -> Ending:
    """Bring the pipeline up to date and decide about what it made; `waits`: only of new data."""
    graph = read_graph(site.tree)
    sources = news.sources_of(graph)
    news.bring_sources(site, graph)
    _run(site, sources, sources if site.params.retrain.refresh_sources else ())
    if waits and not news.is_new(site, graph):
        return Ending("NothingNew", "the shards are the champion's: nothing new to learn from")
    news.set_references(site)
    _run(site, (), ())
    folder = new_folder(site)
    decision = judge(site, graph, folder)
    if not decision.promote:
        return _kept(site, decision, folder)
    if site.params.retrain.gate.approval:
        decision = decision.answered(Approval("waiting"))
        decision.write(folder / "decision.json")
        report_decision(site, folder)
        candidate = promotion.set_aside(site, decision, folder)
        _tell(site, "waiting", "A challenger waits for approval", _how_to_answer(site, candidate))
        return _asked(site, decision, candidate)
    decision.write(folder / "decision.json")
    version = promotion.put_to_use(site, decision)
    report_decision(site, folder)
    return _promoted(site, decision, version.name, version.commit, folder)


def _run(site: Site, stages: Collection[str], force: Collection[str]) -> None:
    runs = run_stages(site.tree, site.params.flows, site.stop, stages, force)
    show_summary(runs)
    demand_success(runs, stopped=site.stop.is_set())


# --- endings ------------------------------------------------------------------------------------


def _promoted(site: Site, decision: Decision, name: str, commit: str, folder: Path) -> Ending:
    problem = promotion.publish_or_say(site)
    message = f"{name} now serves: {decision.reason}" + (f" ({problem})" if problem else "")
    details = {"version": name, "commit": commit, "decision": str(folder / "decision.json")}
    _tell(site, "promoted", f"{name} now serves", message, details)
    if problem:
        _tell(site, "failed", f"{name} could not be published", problem)
    return Ending("Promoted", message)


def _kept(site: Site, decision: Decision, folder: Path) -> Ending:
    decision.write(folder / "decision.json")
    report_decision(site, folder)
    message = f"the champion stays: {decision.reason}"
    if decision.checks:  # else it is a version that is known already: no challenger
        details = {"decision": str(folder / "decision.json")}
        _tell(site, "rejected", "The champion stays", message, details)
    return Ending("Rejected" if decision.checks else "NothingNew", message)


def _tell(
    site: Site, event: Event, title: str, text: str, details: Mapping[str, object] | None = None
) -> None:
    project = {"project": site.main.name, **(details or {})}
    notify(event, f"{site.main.name}: {title}", text, site.params.retrain.notify, project)


def _tell_failure(main: Path, failure: MaestroError, params: Params | None) -> None:
    """Say that a run failed; one that was asked to stop did not fail."""
    event: Event = "failed"
    outcome = failure.run.outcome if isinstance(failure, StageFailed) else None
    if isinstance(failure, Interrupted) or outcome == Outcome.INTERRUPTED:
        return
    if isinstance(failure, DivergedError) or outcome == Outcome.DIVERGED:
        event = "diverged"
    elif isinstance(failure, DataError) or outcome == Outcome.BAD_DATA:
        event = "invalid_data"
    channels = params.retrain.notify if params else ()
    title = f"{main.name}: retraining failed, the champion stays"
    notify(event, title, str(failure), channels, {"project": main.name})


# --- approval -----------------------------------------------------------------------------------


class Answer(RunInput):
    """What a person says of a challenger that passed the gate."""

    approve: bool
    reason: str = ""


def _asked(site: Site, decision: Decision, candidate: Candidate) -> Ending:
    """Ask a person, where a server can; else say how to answer, and leave the candidate waiting."""
    how = _how_to_answer(site, candidate)
    if not FlowRunContext.get():
        return Ending("Waiting", how)
    _log().info("%s", how)
    description = f"{decision.reason}\n\n{how}"
    try:
        said = pause_flow_run(
            wait_for_input=Answer.with_initial_data(description=description),
            timeout=ANSWER_HOURS * 3600,
            poll_interval=5,
        )
    except FlowPauseTimeout:
        return Ending("Waiting", how)
    approval = Approval("approved" if said.approve else "refused", "in Prefect", said.reason)
    return _answered(site, candidate, approval)


def _how_to_answer(site: Site, candidate: Candidate) -> str:
    return (
        f"a challenger waits for a person: look at {site.home / candidate.run}, then resume the "
        f"run in Prefect, or python -m pipelines.flows.retrain --approve {candidate.run} "
        "(or --refuse), with --reason"
    )


def _answered(site: Site, candidate: Candidate, approval: Approval) -> Ending:
    """Do as a person has said; for callers that hold the lock."""
    folder = site.home / candidate.run
    decision, version = promotion.answer(site, candidate, approval)
    if version is not None:
        report_decision(site, folder)
        ending = _promoted(site, decision, version.name, version.commit, folder)
    else:
        ending = _kept(site, decision, folder)
    return ending


def answer_by_hand(root: Path, run: str, approval: Approval) -> Ending:
    """Answer from the command line. Raises UnderWay while a run is at work, MaestroError for a
    run that no candidate waits of."""
    main, stop = root.resolve(), threading.Event()
    with stopping_on_signals(stop), alone(main / HOME):
        site = open_site(main, LOG.info, stop)
        candidate = promotion.waiting(site)
        if candidate is None or candidate.run != run:
            waits = f"the one of {candidate.run}" if candidate else "none"
            raise MaestroError(f"no challenger of {run} waits for approval; {waits} does")
        ending = _answered(site, candidate, approval)
        news.remember_answer(site, ending)
        return ending
