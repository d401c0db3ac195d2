"""What changes under a run is found out, and what no stage depends on may change."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipelines.edits import EditedError, demand_unedited, edited, stated
from tests.pipelines.project import ROOT, Project, wait_for

PIPELINE = """
stages:
  one: {cmd: x, params: [seed, a.b], outs: [o]}
  many:
    matrix: {k: "${kinds}"}
    cmd: x ${item.k}
    params: ["c.${item.k}"]
    outs: ["m-${item.k}"]
"""
PARAMS = {"seed": 1, "a": {"b": 2, "other": 3}, "c": {"x": 4}, "kinds": ["x"], "runtime": {"w": 1}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    write(tmp_path, {})
    return tmp_path


def write(root: Path, changes: dict[str, object]) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS | changes))


@pytest.mark.parametrize(
    ("changes", "of_all", "of_one", "of_many"),
    [
        ({}, [], [], []),
        ({"seed": 2}, ["seed"], ["seed"], []),
        ({"a": {"b": 2, "other": 9}}, [], [], []),
        ({"a": {"b": 9}}, ["a.b"], ["a.b"], []),
        ({"c": {"x": 9}}, ["c"], [], ["c"]),
        ({"kinds": ["x", "y"]}, ["kinds"], [], []),
        ({"runtime": {"w": 9}}, [], [], []),
    ],
)
def test_what_counts(
    root: Path,
    changes: dict[str, object],
    of_all: list[str],
    of_one: list[str],
    of_many: list[str],
) -> None:
    before = {name: stated(root, name) for name in (None, "one", "many@x")}
    write(root, changes)
    found = [edited(before[name], stated(root, name)) for name in (None, "one", "many@x")]
    assert found == [of_all, of_one, of_many]


def test_an_edit_of_the_pipeline_counts_for_the_whole(root: Path) -> None:
    before, before_one = stated(root), stated(root, "one")
    (root / "dvc.yaml").write_text(PIPELINE.replace("cmd: x,", "cmd: y,"))
    assert edited(before, stated(root)) == ["dvc.yaml"]
    assert edited(before_one, stated(root, "one")) == []


def test_a_file_saved_half_counts_as_edited(root: Path) -> None:
    before = stated(root, "one")
    (root / "params.yaml").write_text("seed: [1")
    with pytest.raises(EditedError, match=r"\(a\.b, seed\)"):
        demand_unedited(before, stated(root, "one"))


def test_without_files_nothing_is_stated(tmp_path: Path) -> None:
    assert stated(tmp_path, "one") == {}
    assert edited(stated(tmp_path), stated(tmp_path)) == []


def test_of_our_own_pipeline_the_runtime_does_not_count() -> None:
    names = stated(ROOT)
    assert {"dvc.yaml", "seed", "model", "pretrain", "evaluate.protocols", "data"} <= names.keys()
    assert not names.keys() & {"runtime", "flows", "retrain"}


# --- with DVC -----------------------------------------------------------------------------------

SLOW = "stages: {s: {cmd: python stage.py out SECONDS, params: [seed], outs: [out]}}"


def edit(project: Project, change: Callable[[str], str]) -> None:
    path = project.root / "params.yaml"
    path.write_text(change(path.read_text()))


def test_results_of_edited_parameters_are_not_recorded(project: Project) -> None:
    """DVC by itself would record them under the new values."""
    project.stages(SLOW.replace("SECONDS", "6"))
    dvc = project.start("-m", "dvc", "repro", "s", log=project.root / "log")
    wait_for((project.root / "running-out").exists)
    edit(project, lambda text: text.replace("\nseed: 0", "\nseed: 1"))
    assert dvc.wait(60) != 0
    said = (project.root / "log").read_text()
    assert "params.yaml was edited while this stage ran (seed)" in said
    assert "exited with 6" in said
    assert not (project.root / "dvc.lock").exists()


def test_an_edit_of_runtime_disturbs_nothing(project: Project) -> None:
    project.stages(SLOW.replace("SECONDS", "4"))
    dvc = project.start("-m", "dvc", "repro", "s")
    wait_for((project.root / "running-out").exists)
    edit(project, lambda text: text.replace("log_every: 20", "log_every: 21"))
    assert dvc.wait(60) == 0
