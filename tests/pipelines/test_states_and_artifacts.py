"""Names of states, and what artifacts hold, without a server."""

import json
from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType

from mae.errors import Interrupted, MaestroError, ParamsError
from pipelines.flows.artifacts import (
    PICTURE_BYTES,
    artifact_key,
    metric_rows,
    pages_of,
    pictures_of,
    summary_rows,
)
from pipelines.flows.states import STATES, StageFailed, demand_success, ended, state_of
from pipelines.outcome import Outcome, StageRun
from tests.pipelines.project import Project


def test_every_outcome_has_a_name_of_its_own() -> None:
    assert STATES.keys() == set(Outcome)
    assert len({name for _, name in STATES.values()}) == len(Outcome)
    good = {outcome for outcome, (kind, _) in STATES.items() if kind == StateType.COMPLETED}
    assert good == {outcome for outcome in Outcome if outcome.good}


def test_a_bad_state_says_why_and_with_which_code() -> None:
    state = state_of(StageRun("pretrain", Outcome.DIVERGED, 1.0, 5, "loss is not finite"))
    assert (state.type, state.name) == (StateType.FAILED, "Diverged")
    assert state.message == "pretrain: diverged: loss is not finite (exit code 5)"
    assert isinstance(state.data, StageFailed)
    assert state.data.exit_code == 5


def test_what_decides_the_whole() -> None:
    done, bad = StageRun("a", Outcome.DONE), StageRun("b", Outcome.BAD_DATA, 0, 3, "why")
    demand_success([done], stopped=False)
    with pytest.raises(StageFailed, match="b: bad data: why"):
        demand_success([done, bad], stopped=False)
    with pytest.raises(Interrupted):
        demand_success([done, StageRun("c", Outcome.SKIPPED)], stopped=True)


@pytest.mark.parametrize("failure", [ParamsError("p"), MaestroError("m")])
def test_outside_a_flow_run_a_failure_is_raised(failure: MaestroError) -> None:
    with pytest.raises(type(failure), match=str(failure)):
        ended(failure)


@pytest.mark.parametrize(
    ("stage", "key"),
    [("evaluate@linear_probe", "evaluate-linear-probe-metrics"), ("Ü/x", "x-metrics")],
)
def test_keys_are_as_prefect_allows_them(stage: str, key: str) -> None:
    assert artifact_key(stage, "metrics") == key


def test_metrics_and_how_they_changed(project: Project) -> None:
    path = project.root / "m.json"
    path.write_text(json.dumps({"accuracy": 0.5, "gone": 1}))
    project.commit()
    path.write_text(json.dumps({"accuracy": 0.75, "new": {"k": 2}, "words": "no number"}))
    assert metric_rows(project.root, ["m.json", "missing.json"]) == [
        {"metric": "m.accuracy", "value": 0.75, "last commit": 0.5, "change": 0.25},
        {"metric": "m.new.k", "value": 2.0, "last commit": None, "change": None},
    ]


def test_metrics_where_nothing_is_committed_or_no_git_is(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"a": 1}')
    (row,) = metric_rows(tmp_path, ["m.json"])
    assert row == {"metric": "m.a", "value": 1.0, "last commit": None, "change": None}


def test_small_pictures_are_shown_and_large_ones_named(tmp_path: Path) -> None:
    plots = tmp_path / "plots" / "knn"
    plots.mkdir(parents=True)
    (plots / "a.png").write_bytes(b"x")
    (plots / "b.png").write_bytes(b"x" * (PICTURE_BYTES + 1))
    (plots / "c.csv").write_text("1")
    shown = pictures_of(tmp_path, ["plots/knn", "plots/knn/missing"])
    assert "![plots/knn/a.png](data:image/png;base64,eA==)" in shown
    assert "`plots/knn/b.png` (0.4 MB)" in shown
    assert len(shown) < 1000
    assert pictures_of(tmp_path, []) == ""


def test_pages_are_found_among_outs(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report/index.html").write_text("<p>")
    (tmp_path / "file").write_text("")
    assert pages_of(tmp_path, ["file", "report", "none"]) == [tmp_path / "report/index.html"]


def test_the_summary_has_a_row_for_each_stage() -> None:
    (row,) = summary_rows([StageRun("a", Outcome.FAILED, 1.234, 1, "why\nmore", 2)])
    assert row == {
        "stage": "a",
        "outcome": "failed",
        "seconds": 1.2,
        "attempts": 2,
        "message": "why",
    }
