"""The graph is the one of dvc.yaml, in an order that can be run."""

from pathlib import Path

import pytest

from mae.errors import MaestroError
from pipelines.dvc_graph import StageNode, read_graph, with_upstream
from tests.pipelines.project import ROOT, Project

DIAMOND = """
stages:
  top:
    cmd: python stage.py t 0
    outs: [t]
  last:
    cmd: python stage.py l 0
    deps: [m-one, m-two]
    outs: [l]
  middle:
    matrix: {k: [one, two]}
    cmd: python stage.py m-${item.k} 0
    deps: [t]
    outs: ["m-${item.k}"]
"""


def test_stages_come_after_what_they_need(project: Project) -> None:
    project.stages(DIAMOND)
    assert read_graph(project.root) == [
        StageNode("top", (), outs=("t",)),
        StageNode("middle@one", ("top",), outs=("m-one",)),
        StageNode("middle@two", ("top",), outs=("m-two",)),
        StageNode("last", ("middle@one", "middle@two"), outs=("l",)),
    ]


def test_metrics_and_plots_are_told_from_other_outs(project: Project) -> None:
    project.stages(
        "stages: {s: {cmd: x, outs: [o], metrics: [{m/s.json: {cache: false}}], plots: [p]}}"
    )
    (node,) = read_graph(project.root)
    assert set(node.outs) == {"o", "m/s.json", "p"}
    assert (node.metrics, node.plots) == (("m/s.json",), ("p",))


def test_names_do_not_depend_on_where_we_are(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project.stages(DIAMOND)
    monkeypatch.chdir(tmp_path)
    assert read_graph(project.root)[0].name == "top"


def test_part_of_the_graph(project: Project) -> None:
    project.stages(DIAMOND)
    graph = read_graph(project.root)
    assert [node.name for node in with_upstream(graph, ["middle@two"])] == ["top", "middle@two"]
    with pytest.raises(MaestroError, match=r"no stage 'middle'.*middle@one"):
        with_upstream(graph, ["middle"])


def test_a_faulty_pipeline_is_one_error(project: Project) -> None:
    project.stages("stages: {a: {outs: [x]}}")
    with pytest.raises(MaestroError, match=r"cannot be read"):
        read_graph(project.root)


def test_a_circle_is_refused(project: Project) -> None:
    project.stages("stages: {a: {cmd: x, deps: [f], outs: [g]}, b: {cmd: x, deps: [g], outs: [f]}}")
    with pytest.raises(MaestroError, match="cannot be read"):
        read_graph(project.root)


def test_no_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MaestroError, match="cannot be read"):
        read_graph(tmp_path)


def test_our_own_pipeline_is_whole(project: Project) -> None:
    """Against DVC's own list, and so that every stage runs after all it needs."""
    graph = read_graph(ROOT)
    listed = project.python("-m", "dvc", "--cd", str(ROOT), "stage", "list", "--name-only")
    assert sorted(node.name for node in graph) == sorted(listed.stdout.split())
    done: set[str] = set()
    for node in graph:
        assert done.issuperset(node.needs)
        done.add(node.name)
