"""The checkout of retraining: made, kept, put right after kills, and what git does not bring."""

import shutil
from pathlib import Path

import pytest
import yaml

from mae.errors import MaestroError, ParamsError
from mae.params import Params, PublishParams, parse_params
from pipelines.repository import commit_of, record_results
from pipelines.site import with_value
from pipelines.worktree import HOME, link_sources, prepare, tracked_by_dvc
from tests.pipelines.project import Project

PUBLISH = PublishParams()


@pytest.fixture
def committed(project: Project) -> Project:
    (project.root / "dvc.lock").write_text("one: 1\ntwo: 2\n")
    project.commit()
    return project


def place(project: Project) -> Path:
    return project.root / HOME / "worktree"


def test_it_stays_from_run_to_run(committed: Project) -> None:
    tree = prepare(committed.root, PUBLISH)
    assert tree == place(committed)
    assert commit_of(tree, "HEAD") == commit_of(committed.root, "HEAD")
    (tree / "runs").mkdir()
    (tree / "runs/kept").write_text("work in progress")
    (tree / "dvc.lock").write_text("half written")
    (tree / "data/reference").mkdir(parents=True)
    (tree / "data/reference/exam.json").write_text("{}")
    assert prepare(committed.root, PUBLISH) == tree
    assert (tree / "runs/kept").exists()
    assert (tree / "dvc.lock").read_text() == "one: 1\ntwo: 2\n"
    assert not (tree / "data/reference/exam.json").exists()


def test_a_checkout_that_was_moved_or_copied_takes_its_own_along(
    committed: Project, tmp_path: Path
) -> None:
    tree = prepare(committed.root, PUBLISH)
    (tree / "runs").mkdir()
    (tree / "runs/kept").write_text("work in progress")
    copy = Project(tmp_path / "copy")
    shutil.copytree(committed.root, copy.root, symlinks=True)
    (copy.root / "stage.py").write_text("# other\n")
    copy.commit()
    other = prepare(copy.root, PUBLISH)
    assert (other / "stage.py").read_text() == "# other\n"
    assert (other / "runs/kept").exists()
    assert (tree / "stage.py").read_text() != "# other\n"
    moved = Project(committed.root.rename(tmp_path / "moved"))
    assert (prepare(moved.root, PUBLISH) / "runs/kept").exists()


def test_what_is_left_of_a_killed_making_is_made_again(committed: Project) -> None:
    place(committed).mkdir(parents=True)
    (place(committed) / "half").write_text("")
    assert (prepare(committed.root, PUBLISH) / "dvc.lock").exists()
    shutil.rmtree(place(committed))
    assert (prepare(committed.root, PUBLISH) / "dvc.lock").exists()


def test_work_in_progress_is_never_thrown_away(committed: Project) -> None:
    tree = prepare(committed.root, PUBLISH)
    (tree / "runs/pretrain").mkdir(parents=True)
    (tree / ".git").unlink()
    prepare(committed.root, PUBLISH)  # git knows it still
    shutil.rmtree(committed.root / ".git/worktrees")
    with pytest.raises(MaestroError, match="move it away"):
        prepare(committed.root, PUBLISH)
    assert (tree / "runs/pretrain").is_dir()


def test_results_are_never_mixed_in_a_merge(committed: Project) -> None:
    """Both sides changed dvc.lock in lines that git would merge without a word."""
    tree = prepare(committed.root, PUBLISH)
    (tree / "dvc.lock").write_text("one: 10\ntwo: 2\n")
    record_results(tree, "of the branch")
    (committed.root / "dvc.lock").write_text("one: 1\ntwo: 2\n\n\n\n\nthree: 3\n")
    (committed.root / "new.txt").write_text("code")
    committed.commit("of main")
    prepare(committed.root, PUBLISH)
    assert (tree / "dvc.lock").read_text() == "one: 10\ntwo: 2\n"
    assert (tree / "new.txt").read_text() == "code"
    assert committed.run("git", "-C", str(tree), "status", "--porcelain").stdout == ""


def test_results_deleted_on_one_side_are_no_conflict(committed: Project) -> None:
    tree = prepare(committed.root, PUBLISH)
    (tree / "dvc.lock").write_text("one: 10\n")
    record_results(tree, "of the branch")
    (committed.root / "dvc.lock").unlink()
    committed.commit("of main")
    prepare(committed.root, PUBLISH)
    assert (tree / "dvc.lock").read_text() == "one: 10\n"


def test_another_branch_takes_over_in_place(committed: Project) -> None:
    tree = prepare(committed.root, PUBLISH)
    (tree / "runs").mkdir()
    (tree / "runs/kept").write_text("work in progress")
    prepare(committed.root, PublishParams(branch="nightly"))
    assert committed.run("git", "-C", str(tree), "branch", "--show-current").stdout == "nightly\n"
    assert (tree / "runs/kept").exists()


def test_it_begins_with_what_others_have_published(committed: Project, tmp_path: Path) -> None:
    bare = tmp_path / "bare.git"
    committed.run("git", "init", "-q", "--bare", "-b", "main", str(bare))
    committed.run("git", "remote", "add", "origin", str(bare))
    tree = prepare(committed.root, PUBLISH)
    (tree / "dvc.lock").write_text("one: 10\n")
    published = record_results(tree, "a retraining")
    committed.run("git", "push", "-q", "origin", "main", "retrain")
    clone = Project(tmp_path / "clone")
    committed.run("git", "clone", "-q", str(bare), str(clone.root))
    mine = prepare(clone.root, PublishParams(git_remote="origin"))
    assert commit_of(mine, "HEAD") == published
    clone.run("git", "remote", "set-url", "origin", str(tmp_path / "gone"))
    assert prepare(clone.root, PublishParams(git_remote="origin")) == mine, "not within reach"


def test_a_project_below_the_top_of_its_repository(committed: Project, tmp_path: Path) -> None:
    top = Project(tmp_path / "top")
    shutil.copytree(committed.root, top.root / "below", ignore=shutil.ignore_patterns(".git"))
    for name in ("email test@example.org", "name Test"):
        top.run("git", "init", "-q", "-b", "main")
        top.run("git", "config", f"user.{name.split()[0]}", name.split()[1])
    top.commit()
    tree = prepare(top.root / "below", PUBLISH)
    assert (tree / "dvc.yaml").exists() or (tree / "params.yaml").exists()
    assert tree == top.root / "below" / HOME / "worktree" / "below"


# --- what git does not bring ----------------------------------------------------------------------


def test_cache_and_remotes_are_those_of_the_main_checkout(committed: Project) -> None:
    committed.python("-m", "dvc", "remote", "add", "-d", "near", "../storage")  # relative
    committed.python("-m", "dvc", "remote", "add", "far", "s3://bucket/path")
    committed.python("-m", "dvc", "remote", "modify", "--local", "far", "access_key_id", "mine")
    committed.python("-m", "dvc", "remote", "add", "--local", "own", "../mine")
    committed.commit()
    for _ in range(2):
        tree = prepare(committed.root, PUBLISH)
    listed = Project(tree).python("-m", "dvc", "remote", "list").stdout.split()
    assert listed[:2] == ["near", str(committed.root.parent / "storage")]
    assert str(committed.root.parent / "mine") in listed
    assert "s3://bucket/path" in listed
    cache = Project(tree).python("-m", "dvc", "cache", "dir").stdout.strip()
    assert Path(cache).resolve() == (committed.root / ".dvc/cache").resolve()
    key = Project(tree).python("-m", "dvc", "config", "remote.far.access_key_id").stdout
    assert key.strip() == "mine"
    assert committed.run("git", "-C", str(tree), "status", "--porcelain").stdout == ""


def params(**sections: dict) -> Params:
    content = yaml.safe_load(Path("params.yaml").read_text())
    for section, changes in sections.items():
        content[section] |= changes
    return parse_params(content)


def test_sources_beside_git_are_linked(tmp_path: Path) -> None:
    main, tree = tmp_path / "main", tmp_path / "main/runs/retrain/worktree"
    for name in ("raw/images", "data/shards", "data/scenes-a", "weights/own"):
        (main / name).mkdir(parents=True)
    (tree / "data").mkdir(parents=True)
    (tree / "tracked.dvc").write_text("")
    (main / "tracked").mkdir()
    wanted = params(
        data={
            "images": {"source": "folder", "path": "raw/images"},
            "scenes": {"source": "coco", "path": "data/scenes-{a,b}"},
        },
        pretrain={"start_from": "tracked"},
        evaluate={"baselines": {"own": "weights/own", "other": str(main / "weights")}},
    )
    for _ in range(2):
        link_sources(main, tree, wanted)
    links = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_symlink()}
    assert links == {"raw/images", "data/scenes-a", "weights/own"}
    assert (tree / "raw/images").resolve() == main / "raw/images"
    assert tracked_by_dvc(tree, wanted) == ["tracked.dvc"]

    shutil.move(main, tmp_path / "moved")
    main, tree = tmp_path / "moved", tmp_path / "moved/runs/retrain/worktree"
    link_sources(main, tree, wanted)
    assert (tree / "raw/images").resolve() == main / "raw/images"


# --- params.yaml ----------------------------------------------------------------------------------


def test_one_value_changes_and_every_other_byte_stays() -> None:
    text = Path("params.yaml").read_text()
    changed = with_value(text, ("pretrain", "start_from"), "runs/models/encoder@v0.1.0/pretrain")
    ours, theirs = text.splitlines(), changed.splitlines()
    differing = [line for line, other in zip(ours, theirs, strict=True) if line != other]
    assert len(differing) == 1
    assert "# weights to begin with" in next(line for line in theirs if "v0.1.0" in line)
    found = yaml.safe_load(changed)["pretrain"]["start_from"]
    assert found == "runs/models/encoder@v0.1.0/pretrain"
    again = with_value(changed, ("pretrain", "start_from"), 'with "quotes" and: colons')
    assert yaml.safe_load(again)["pretrain"]["start_from"] == 'with "quotes" and: colons'
    with pytest.raises(ParamsError, match=r"has no pretrain\.nothing"):
        with_value(text, ("pretrain", "nothing"), "x")
