"""Stages run after what they need, never too many at once, and failures hold back little."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dvc_graph import StageNode
from pipelines.graph_run import run_graph, summary
from pipelines.outcome import Outcome, StageRun, first_failure

CHAIN = [StageNode("a", ()), StageNode("b", ("a",)), StageNode("c", ("b",)), StageNode("d", ())]


def ending(outcomes: dict[str, Outcome]):
    def run(stage: str) -> StageRun:
        return StageRun(stage, outcomes.get(stage, Outcome.DONE))

    return run


@st.composite
def graphs(draw: st.DrawFn) -> list[StageNode]:
    count = draw(st.integers(1, 8))
    return [
        StageNode(str(i), tuple(sorted(draw(st.sets(st.integers(0, i - 1).map(str))) if i else ())))
        for i in range(count)
    ]


@settings(max_examples=40, deadline=None)
@given(graphs(), st.integers(1, 4))
def test_any_graph(graph: list[StageNode], workers: int) -> None:
    lock, ended, running, most = threading.Lock(), [], [], [0]
    needs = {node.name: set(node.needs) for node in graph}

    def run(stage: str) -> StageRun:
        with lock:
            assert needs[stage] <= set(ended)
            running.append(stage)
            most[0] = max(most[0], len(running))
        time.sleep(0.001)
        with lock:
            running.remove(stage)
            ended.append(stage)
        return StageRun(stage, Outcome.DONE)

    runs = run_graph(graph, run, threading.Event(), workers)
    assert [run.stage for run in runs] == [node.name for node in graph]
    assert sorted(ended) == sorted(needs)
    assert most[0] <= workers


def test_two_stages_do_run_side_by_side() -> None:
    both = threading.Barrier(2, timeout=20)

    def run(stage: str) -> StageRun:
        both.wait()
        return StageRun(stage, Outcome.DONE)

    graph = [StageNode("x", ()), StageNode("y", ())]
    assert len(run_graph(graph, run, threading.Event(), workers=2)) == 2


def test_a_failure_holds_back_only_what_needs_it() -> None:
    runs = run_graph(CHAIN, ending({"a": Outcome.BAD_DATA}), threading.Event())
    assert [run.outcome for run in runs] == [
        Outcome.BAD_DATA,
        Outcome.SKIPPED,
        Outcome.SKIPPED,
        Outcome.DONE,
    ]
    assert runs[1].message == "needs a"
    assert runs[2].message == "needs b"


def test_an_interruption_holds_back_everything() -> None:
    stop = threading.Event()
    runs = run_graph(CHAIN, ending({"a": Outcome.INTERRUPTED}), stop)
    assert [run.outcome for run in runs][1:] == [Outcome.SKIPPED] * 3
    assert stop.is_set()


def test_stopped_before_it_began() -> None:
    stop = threading.Event()
    stop.set()
    assert {run.outcome for run in run_graph(CHAIN, ending({}), stop)} == {Outcome.SKIPPED}


def test_an_exception_stops_the_other_stages() -> None:
    stop = threading.Event()

    def run(stage: str) -> StageRun:
        if stage == "a":
            raise RuntimeError("a bug")
        assert stop.wait(20)
        return StageRun(stage, Outcome.INTERRUPTED)

    with pytest.raises(RuntimeError, match="a bug"):
        run_graph(CHAIN, run, stop, workers=2)


def test_the_interruption_decides_before_an_earlier_failure() -> None:
    failed = StageRun("a", Outcome.FAILED, exit_code=1)
    stopped = StageRun("b", Outcome.INTERRUPTED, exit_code=75)
    assert first_failure([failed, stopped]) is stopped
    assert first_failure([StageRun("a", Outcome.DONE), StageRun("b", Outcome.SKIPPED)]) is None


def test_the_summary_has_a_line_for_each_stage() -> None:
    text = summary(
        [StageRun("a", Outcome.DONE, 1.25), StageRun("bb", Outcome.BAD_DATA, 2, 3, "why\nx")]
    )
    assert text.splitlines() == [
        "a   done                     1.2 s",
        "bb  bad data                 2.0 s  why",
    ]
