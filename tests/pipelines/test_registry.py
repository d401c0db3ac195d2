"""Versions and what serves, in a real repository, read back by DVC and GTO as well."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from gto.api import deregister, register
from gto.api import show as gto_show

from mae.errors import MaestroError
from pipelines.registry import champion, content, contents, named, promote, rollback, versions
from pipelines.repository import file_at, record_results
from tests.pipelines.project import Project

PIPELINE = """
artifacts:
  encoder: {path: model, type: model}
stages:
  fit:
    cmd: cp v model && mkdir -p artifacts/metrics && cp v artifacts/metrics/probe.json
    deps: [v]
    outs: [model]
    metrics: [{artifacts/metrics/probe.json: {cache: false}}]
"""


def fit(project: Project, accuracy: float) -> None:
    (project.root / "v").write_text(f'{{"accuracy": {accuracy}}}')
    project.python("-m", "dvc", "repro", "-q")


@pytest.fixture(scope="module")
def three_versions(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = Project(tmp_path_factory.mktemp("versions") / "project")
    shutil.copytree(template, project.root)
    project.stages(PIPELINE)
    for accuracy in (0.1, 0.2, 0.3):
        fit(project, accuracy)
        project.commit()
        promote(project.root, "encoder", "prod", message=f"reached {accuracy}")
    return project.root


@pytest.fixture
def registered(three_versions: Path, tmp_path: Path) -> Project:
    """A project with v0.1.0, v0.2.0 and v0.3.0, the last of which serves."""
    shutil.copytree(three_versions, tmp_path / "project")
    return Project(tmp_path / "project")


def serving(project: Project) -> list[str]:
    return [each.version for each in versions(project.root, "encoder") if "prod" in each.stages]


def test_promotion_and_rollback(registered: Project) -> None:
    root = registered.root
    assert [each.version for each in versions(root, "encoder")] == ["v0.3.0", "v0.2.0", "v0.1.0"]
    assert serving(registered) == ["v0.3.0"]
    assert rollback(root, "encoder", "prod").version == "v0.2.0"
    assert rollback(root, "encoder", "prod").version == "v0.1.0"
    with pytest.raises(MaestroError, match=r"v0\.1\.0 is the first"):
        rollback(root, "encoder", "prod")
    assert promote(root, "encoder", "prod", version="v0.3.0").stages == ("prod",)
    assert serving(registered) == ["v0.3.0"]
    assert promote(root, "encoder", "staging", version="v0.1.0").stages == ("staging",)
    assert serving(registered) == ["v0.3.0"]


def test_dvc_delivers_what_serves(registered: Project) -> None:
    """After a rollback too, where readers that go by the highest version would be wrong."""
    rollback(registered.root, "encoder", "prod")
    registered.python(
        "-m", "dvc", "artifacts", "get", ".", "encoder", "--stage", "prod", "-o", "got"
    )
    assert (registered.root / "got").read_text() == '{"accuracy": 0.2}'
    tags = registered.run("git", "tag").stdout.split()
    assert {"encoder@v0.1.0", "encoder#prod#1", "encoder#prod!#3"} <= set(tags)


def test_the_same_commit_twice_is_one_version(registered: Project) -> None:
    assert promote(registered.root, "encoder", "prod").version == "v0.3.0"
    assert len(versions(registered.root, "encoder")) == 3


def test_another_commit_than_head_may_be_promoted(registered: Project) -> None:
    """Nothing in the working tree matters then: it may be anybody's."""
    root = registered.root
    fit(registered, 0.4)
    registered.run("git", "checkout", "-q", "-b", "retrain")
    registered.commit("retrained")
    registered.run("git", "checkout", "-q", "main")
    (root / "v").write_text("half-done work")
    with pytest.raises(MaestroError, match="uncommitted changes in v"):
        promote(root, "encoder", "prod")
    chosen = promote(root, "encoder", "prod", commit="retrain", message="#1 of its kind")
    assert (chosen.name, chosen.message) == ("encoder@v0.4.0", "#1 of its kind")
    assert chosen == champion(root, "encoder", "prod") == named(root, "encoder#prod")
    assert chosen.commit == registered.run("git", "rev-parse", "retrain").stdout.strip()
    assert promote(root, "encoder", "prod", commit="retrain").version == "v0.4.0"
    with pytest.raises(MaestroError, match="there is no commit 'nowhere'"):
        promote(root, "encoder", "prod", commit="nowhere")


def test_two_promotions_at_once(registered: Project) -> None:
    """Also from another worktree of the repository, as scheduled retraining uses."""
    root = registered.root
    registered.run("git", "worktree", "add", "-q", "--detach", "../other")
    with (root / ".git/maestro-registry.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        changes: list[Callable[[], object]] = [
            lambda: promote(root, "encoder", "prod", version="v0.1.0"),
            lambda: rollback(root, "encoder", "prod"),
            lambda: rollback(root.parent / "other", "encoder", "prod"),
        ]
        for change in changes:
            with pytest.raises(MaestroError, match="another promotion or rollback of 'encoder'"):
                change()
        assert serving(registered) == ["v0.3.0"]
    command = ("-m", "pipelines.registry", "promote", "--version")
    racing = [registered.start(*command, version) for version in ("v0.1.0", "v0.2.0")]
    codes = [one.wait(120) for one in racing]
    assert 0 in codes and set(codes) <= {0, 1}
    assert len(serving(registered)) == 1


def as_gto_sees_it(root: Path) -> dict[str, set[str]]:
    found = gto_show(str(root), "encoder", registered_only=True, versions_per_stage=-1)
    return {each["version"]: {one["stage"] for one in each["stages"]} for each in found}


def as_we_do(root: Path) -> dict[str, set[str]]:
    return {each.version: set(each.stages) for each in versions(root, "encoder")}


def test_gto_reads_the_same_of_our_tags_and_we_of_its(registered: Project) -> None:
    root = registered.root
    promote(root, "encoder", "staging", version="v0.1.0")
    rollback(root, "encoder", "prod")
    promote(root, "encoder", "staging", version="v0.2.0")
    assert as_we_do(root) == as_gto_sees_it(root)
    assert as_we_do(root) == {"v0.1.0": set(), "v0.2.0": {"prod", "staging"}, "v0.3.0": set()}
    (root / "v").write_text("more")
    registered.commit("more")
    register(str(root), "encoder", "HEAD", version="v0.4.0-rc1")
    registered.run("git", "tag", "encoder@v7.0.0")  # lightweight: says neither when nor by whom
    registered.run("git", "tag", "-a", "-m", "", "unrelated@v9.0.0")
    deregister(str(root), "encoder", version="v0.1.0")
    assert as_we_do(root) == as_gto_sees_it(root)
    assert list(as_we_do(root)) == ["v0.4.0-rc1", "v0.3.0", "v0.2.0"]


def test_the_command_line(registered: Project) -> None:
    command = ("-m", "pipelines.registry")
    assert "v0.3.0" in registered.python(*command, "list").stdout.splitlines()[0]
    shown = registered.python(*command, "show", "encoder#prod").stdout
    assert "reached 0.3" in shown
    assert "probe.accuracy" in shown and "0.3" in shown
    assert "encoder@v0.2.0 serves 'prod'" in registered.python(*command, "rollback").stdout
    failed = registered.python(*command, "show", "encoder@v9.0.0", check=False)
    assert failed.returncode == 1
    assert "it has: v0.3.0, v0.2.0, v0.1.0" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_what_no_commit_holds_is_refused(project: Project) -> None:
    root = project.root
    with pytest.raises(MaestroError, match="no commit 'HEAD'"):
        versions(root, "encoder")
    project.stages("stages: {}")
    (root / "v").write_text("{}")
    project.commit()
    assert versions(root, "encoder") == []
    assert champion(root, "encoder", "prod") is None
    with pytest.raises(MaestroError, match="declares no artifact 'encoder'"):
        promote(root, "encoder", "prod")
    project.stages(PIPELINE)
    project.commit()
    with pytest.raises(MaestroError, match="has no 'model': run the pipeline"):
        promote(root, "encoder", "prod")
    with pytest.raises(MaestroError, match="nothing to roll back"):
        rollback(root, "encoder", "prod")
    with pytest.raises(MaestroError, match="no version v1"):
        promote(root, "encoder", "prod", version="v1")
    fit(project, 0.5)
    with pytest.raises(MaestroError, match=r"uncommitted changes in .*v"):
        promote(root, "encoder", "prod")
    project.commit()
    assert promote(root, "encoder", "prod", bump="major").version == "v0.1.0"


def test_only_results_are_recorded(registered: Project) -> None:
    root = registered.root
    fit(registered, 0.4)
    commit = record_results(root, "results")
    assert "v" in registered.run("git", "diff", "--name-only").stdout.split()
    assert file_at(root, commit, "artifacts/metrics/probe.json") == '{"accuracy": 0.4}'
    assert record_results(root, "again") == commit
    assert content(root, "encoder", commit) == content(root, "encoder", None)
    assert contents(root, commit) == {"encoder": content(root, "encoder", commit)}
