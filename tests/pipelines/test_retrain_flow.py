"""Retraining without a server: what it makes of new data, of faults, and of being killed."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.registry import rollback, versions
from tests.pipelines.project import wait_for
from tests.pipelines.retraining_project import FIT, FLOW, TREE, RetrainingProject


@pytest.fixture(scope="module")
def one_version(template: Path, tmp_path_factory: pytest.TempPathFactory) -> RetrainingProject:
    project = RetrainingProject.create(template, tmp_path_factory.mktemp("retrain") / "project")
    assert "encoder@v0.1.0 now serves: no champion yet" in project.command("--once")
    return project


@pytest.fixture
def trained(one_version: RetrainingProject, tmp_path: Path) -> Iterator[RetrainingProject]:
    """A project whose v0.1.0 has accuracy 0.5."""
    project = one_version.copy(tmp_path / "trained")
    yield project
    project.end_all()


# --- new data, and who is better ----------------------------------------------------------------


def test_new_data_are_trained_on_and_only_what_is_better_is_promoted(
    trained: RetrainingProject,
) -> None:
    assert "the sources are as they were" in trained.once()
    assert trained.trainings == 1

    trained.world(0.4)
    assert "the champion stays: linear_probe.accuracy 0.4" in trained.once()
    assert (trained.serving(), trained.trainings) == ("v0.1.0", 2)
    assert "the sources are as they were" in trained.once()
    assert trained.trainings == 2, "a challenger that was refused is not trained again"

    trained.set(retrain={"gate": {"metric": "linear_probe.accuracy", "margin": -0.2}})
    trained.commit("A gate that lets it pass")
    assert "encoder@v0.2.0 now serves" in trained.once()
    assert (trained.serving(), trained.trainings) == ("v0.2.0", 2)

    trained.world(0.75)
    assert "encoder@v0.3.0 now serves" in trained.once()
    assert (trained.serving(), trained.trainings) == ("v0.3.0", 3)
    promoted = [decision["promote"] for decision in trained.decisions()]
    assert promoted == [True, False, True, True]
    last = trained.decisions()[-1]
    assert last["champion_version"] == "v0.2.0"
    assert last["challenger"] == {"linear_probe.accuracy": 0.75}
    assert last["data_fingerprint"].keys() == {"shards"}
    assert "data/shards/images holds no images" in trained.decisions()[1]["remarks"][0]
    tagged = trained.run("git", "show", "encoder@v0.3.0:artifacts/metrics/linear_probe.json")
    assert json.loads(tagged.stdout) == {"accuracy": 0.75}
    (trained.root / "stage.py").write_text("# other code\n")
    trained.commit()
    assert "the shards are the champion's" in trained.once()


def test_a_persons_checkout_is_never_touched(trained: RetrainingProject) -> None:
    trained.stages("in the middle: [of an edit\n")
    (trained.root / "note.txt").write_text("not added")
    (trained.root / "stage.py").write_text("# staged\n")
    trained.run("git", "add", "stage.py")
    trained.world(0.9)
    before = trained.own()
    assert "encoder@v0.2.0 now serves" in trained.once()
    assert trained.own() == before
    trained.world(0.1)
    before = trained.own()
    assert "the champion stays" in trained.once()
    assert trained.own() == before


@pytest.mark.slow
def test_without_waiting_for_data_the_same_champion_is_no_challenger(
    trained: RetrainingProject,
) -> None:
    assert "the pipeline gave the champion, v0.1.0, again" in trained.once(anyway=True)
    trained.set(retrain={"wait_for_data": False})
    trained.commit()
    assert "the pipeline gave the champion, v0.1.0, again" in trained.once()
    assert trained.trainings == 1
    assert [len(version.stages) for version in versions(trained.root, "encoder")] == [1]


@pytest.mark.slow
def test_what_was_rolled_back_is_not_put_back(trained: RetrainingProject) -> None:
    trained.world(0.8)
    trained.once()
    rollback(trained.root, "encoder", "prod")
    assert trained.serving() == "v0.1.0"
    assert "v0.2.0 again, which was taken out of use" in trained.once()
    assert trained.serving() == "v0.1.0"


def test_commits_are_followed_and_results_stay_the_branchs(trained: RetrainingProject) -> None:
    trained.world(0.6)
    trained.once()  # dvc.lock of the branch is now another than that of main
    (trained.root / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    (trained.root / "fit.py").write_text(FIT + "# other code\n")
    trained.commit("A person's own run of the pipeline, and other code")
    assert trained.serving() == "v0.2.0"
    trained.world(0.7)
    before = trained.own()
    assert "encoder@v0.3.0 now serves" in trained.once()
    assert trained.own() == before
    assert "# other code" in trained.run("git", "show", "encoder@v0.3.0:fit.py").stdout


def test_a_merge_that_needs_a_person_changes_nothing(trained: RetrainingProject) -> None:
    (trained.root / TREE / "stage.py").write_text("# of the branch\n")
    trained.run("git", "-C", str(TREE), "commit", "-qam", "by hand on the branch")
    (trained.root / "stage.py").write_text("# of main\n")
    trained.commit("by hand on main")
    branch = trained.run("git", "rev-parse", "retrain").stdout
    trained.world(0.9)
    said = trained.once(code=1)
    assert "cannot be merged into branch 'retrain' (stage.py)" in said
    assert trained.run("git", "rev-parse", "retrain").stdout == branch
    assert trained.run("git", "-C", str(TREE), "diff", "HEAD").stdout == ""
    assert trained.serving() == "v0.1.0"


@pytest.mark.slow
def test_pretraining_begins_with_the_champions_weights(trained: RetrainingProject) -> None:
    mine = (trained.root / "params.yaml").read_text()
    text = mine.replace("start_from: scratch", "start_from: champion  # go on")
    assert text != mine
    (trained.root / "params.yaml").write_text(text)
    trained.commit()
    trained.world(0.9)
    trained.once()
    committed = trained.run("git", "show", "encoder@v0.2.0:params.yaml").stdout
    assert 'start_from: "runs/models/encoder@v0.1.0/model"' in committed
    assert committed.splitlines()[-1] == text.splitlines()[-1]
    assert "start_from: champion  # go on" in committed
    weights = trained.root / TREE / "runs/models/encoder@v0.1.0/model"
    assert json.loads(weights.read_text()) == {"accuracy": 0.5}

    (trained.root / "params.yaml").write_text(mine)
    trained.commit("from scratch again")
    trained.world(0.95)
    trained.once()
    assert trained.run("git", "show", "encoder@v0.3.0:params.yaml").stdout == mine


# --- faults -------------------------------------------------------------------------------------


def test_a_failing_stage_keeps_the_champion_and_is_tried_again(trained: RetrainingProject) -> None:
    trained.world(0.9)
    (trained.root / "seconds").write_text("no number")
    assert "fit: failed" in trained.once(code=1)
    assert trained.serving() == "v0.1.0"
    (trained.root / "seconds").write_text("0")
    assert "encoder@v0.2.0 now serves" in trained.once()


def test_sources_that_are_gone_are_named(trained: RetrainingProject) -> None:
    shutil.rmtree(trained.root / "images")
    assert "data.images.path: there is nothing at images" in trained.once(code=1)
    assert trained.serving() == "v0.1.0"


@pytest.mark.slow
def test_a_head_on_no_branch_is_not_followed(trained: RetrainingProject) -> None:
    trained.run("git", "checkout", "-q", "--detach")
    trained.world(0.6)
    assert "encoder@v0.2.0 now serves" in trained.once(), "it holds nothing that is not known"
    (trained.root / "stage.py").write_text("# an experiment\n")
    trained.commit()
    assert "which is on no branch (detached HEAD)" in trained.once(code=1)


def test_what_git_must_be_like_is_said(trained: RetrainingProject, tmp_path: Path) -> None:
    trained.run("git", "worktree", "remove", "--force", str(TREE))
    trained.run("git", "checkout", "-q", "retrain")
    assert "branch 'retrain' is checked out in" in trained.once(code=1)
    trained.run("git", "checkout", "-q", "main")
    (trained.root / ".gitignore").write_text("/images/\n")
    trained.commit()
    assert "add /runs/ to .gitignore" in trained.once(code=1)
    empty = RetrainingProject(tmp_path / "empty")
    shutil.copytree(trained.root, empty.root, ignore=shutil.ignore_patterns(".git", "runs"))
    empty.run("git", "init", "-q", "-b", "main")
    assert "has no commit yet" in empty.once(code=1)


def test_parameters_that_are_wrong_as_committed_are_said(trained: RetrainingProject) -> None:
    mine = (trained.root / "params.yaml").read_text()
    trained.set(retrain={"wait_for_dta": True})
    trained.commit()
    (trained.root / "params.yaml").write_text(mine)  # mended, and not committed
    said = trained.once(code=2)
    assert "as committed, params.yaml has faults" in said
    assert "did you mean 'wait_for_data'" in said


def test_a_full_disk_is_said(trained: RetrainingProject, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    trained.world(0.8)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.decision.write_json", full)
        assert "the disk is full" in trained.once(code=1)
    assert trained.serving() == "v0.1.0"
    assert "encoder@v0.2.0 now serves" in trained.once()
    assert trained.trainings == 2


@pytest.mark.slow
def test_a_second_one_says_who_is_at_work(trained: RetrainingProject) -> None:
    trained.world(0.9, seconds=600)
    first = trained.start(*FLOW, "--once")
    wait_for(lambda: trained.trainings == 2, 120)
    said = trained.command("--once", code=7)
    assert f"another retraining is under way: process {first.pid} on" in said
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 75
    wait_for(lambda: not trained.alive(), 60)
    trained.world(0.9)
    assert "encoder@v0.2.0 now serves" in trained.once()


# --- publishing ---------------------------------------------------------------------------------


def test_a_promotion_is_published_and_again_when_a_remote_is_back(
    trained: RetrainingProject, tmp_path: Path
) -> None:
    storage, bare = tmp_path / "storage", tmp_path / "bare.git"
    trained.run("git", "init", "-q", "--bare", "-b", "main", str(bare))
    trained.run("git", "remote", "add", "origin", str(bare))
    trained.run("git", "push", "-q", "origin", "main")
    trained.python("-m", "dvc", "remote", "add", "-d", "store", str(storage))
    publish = {"branch": "retrain", "git_remote": "origin", "dvc_remote": "store"}
    trained.set(retrain={"publish": publish})
    trained.commit()
    storage.write_text("a file where the remote's folder would be")
    trained.world(0.8)
    said = trained.once()
    assert "encoder@v0.2.0 now serves" in said
    assert "not published, which the next run tries again" in said
    assert trained.serving() == "v0.2.0"
    assert "v0.2.0" not in trained.run("git", "ls-remote", str(bare)).stdout, "no files, no tag"

    storage.unlink()
    assert "the sources are as they were" in trained.once()
    refs = trained.run("git", "ls-remote", str(bare)).stdout
    assert {"refs/heads/retrain", "refs/tags/encoder@v0.2.0"} <= set(refs.split())
    clone = RetrainingProject(tmp_path / "clone")
    trained.run("git", "clone", "-q", "-b", "retrain", str(bare), str(clone.root))
    clone.python("-m", "pipelines.registry", "fetch", "encoder#prod")
    fetched = clone.root / "runs/models/encoder@v0.2.0/model"
    assert json.loads(fetched.read_text()) == {"accuracy": 0.8}
    assert not (trained.root / "runs/retrain/unpublished.json").exists()


# --- killed ---------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pipelines import promotion, registry, repository, retraining, site
from pipelines.flows import retraining_flow

module, name, count = sys.argv[1:4]
owner = sys.modules["pipelines." + module]
function, calls = getattr(owner, name), []

def killed(*given, **named):
    calls.append(name)
    if len(calls) == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*given, **named)

setattr(owner, name, killed)
retraining_flow.retrain.fn(root=".")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "count"),
    [
        ("flows.retraining_flow", "judge", 1),  # all trained, nothing decided
        ("promotion", "record_results", 1),  # decided, nothing committed
        ("promotion", "promote", 1),  # committed, no tag
        ("registry", "_serve", 1),  # a version, which serves nothing
        ("registry", "_tag", 2),  # two serve
        ("flows.retraining_flow", "report_decision", 1),  # all done but the report
    ],
)
def test_after_a_kill_the_next_run_makes_it_whole(
    trained: RetrainingProject, module: str, name: str, count: int
) -> None:
    trained.world(0.8)
    done = trained.python("-c", KILLED, module, name, str(count), check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert trained.serving() in ("v0.1.0", "v0.2.0")
    trained.once()
    assert trained.serving() == "v0.2.0"
    found = versions(trained.root, "encoder")
    assert [(one.version, one.stages) for one in found] == [("v0.2.0", ("prod",)), ("v0.1.0", ())]
    assert trained.trainings == 2, "nothing was trained twice"
    lock = trained.run("git", "show", "encoder@v0.2.0:dvc.lock").stdout
    assert lock == (trained.root / TREE / "dvc.lock").read_text()


@pytest.mark.slow
def test_killed_in_training_nothing_is_left_and_the_next_run_goes_on(
    trained: RetrainingProject,
) -> None:
    trained.world(0.8, seconds=600)
    first = trained.start(*FLOW, "--once")
    wait_for(lambda: trained.trainings == 2, 120)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    wait_for(lambda: not trained.alive(), 120)
    trained.world(0.8)
    assert "encoder@v0.2.0 now serves" in trained.once()


@pytest.mark.slow
def test_locks_of_a_git_that_was_killed_are_no_obstacle(trained: RetrainingProject) -> None:
    own = trained.root / ".git/worktrees/worktree"
    for lock in (own / "index.lock", trained.root / ".git/refs/heads/retrain.lock"):
        lock.write_text("")
    (trained.root / TREE / "stage.py").write_text("# half written\n")
    trained.world(0.8)
    assert "encoder@v0.2.0 now serves" in trained.once()


# --- a person has the last word -------------------------------------------------------------------


@pytest.fixture
def waiting(trained: RetrainingProject) -> RetrainingProject:
    """A challenger of 0.8 waits for a person."""
    gate = {"metric": "linear_probe.accuracy", "approval": True}
    trained.set(retrain={"gate": gate})
    trained.commit()
    trained.world(0.8)
    assert "a challenger waits for a person" in trained.once()
    assert trained.serving() == "v0.1.0"
    return trained


def run_of(project: RetrainingProject) -> str:
    return sorted(project.root.glob("runs/retrain/*/decision.json"))[-1].parent.name


def test_approved(waiting: RetrainingProject) -> None:
    assert waiting.decisions()[-1]["approval"]["answer"] == "waiting"
    assert "a challenger waits for a person" in waiting.once(), "it survives"
    assert waiting.trainings == 2
    run = run_of(waiting)
    said = waiting.command("--approve", run, "--reason", "looks right")
    assert "encoder@v0.2.0 now serves" in said
    assert waiting.serving() == "v0.2.0"
    decision = waiting.decisions()[-1]
    assert decision["promote"]
    assert decision["approval"] == {
        "answer": "approved",
        "by": "command line",
        "reason": "looks right",
    }
    on_branch = waiting.run("git", "merge-base", "--is-ancestor", "encoder@v0.2.0", "retrain")
    assert on_branch.returncode == 0
    assert "the sources are as they were" in waiting.once()
    assert "no challenger of" in waiting.command("--approve", run, code=1)


@pytest.mark.slow
def test_refused(waiting: RetrainingProject) -> None:
    branch = waiting.run("git", "rev-parse", "retrain").stdout
    said = waiting.command("--refuse", run_of(waiting), "--reason", "wrong classes")
    assert "the champion stays: refused (command line): wrong classes" in said
    assert waiting.serving() == "v0.1.0"
    assert waiting.run("git", "rev-parse", "retrain").stdout == branch
    assert not waiting.decisions()[-1]["promote"]
    assert "the sources are as they were" in waiting.once()


@pytest.mark.slow
def test_superseded_by_newer_data(waiting: RetrainingProject) -> None:
    old = run_of(waiting)
    waiting.world(0.9)
    assert "superseded" in waiting.once()
    assert "no challenger of" in waiting.command("--approve", old, code=1)
    waiting.command("--approve", run_of(waiting))
    metrics = waiting.run("git", "show", "encoder@v0.2.0:artifacts/metrics/linear_probe.json")
    assert json.loads(metrics.stdout) == {"accuracy": 0.9}


# --- dry run --------------------------------------------------------------------------------------


def test_a_rehearsal_tells_all_and_changes_nothing(trained: RetrainingProject) -> None:
    trained.world(0.9)
    before = trained.own()
    refs = trained.run("git", "for-each-ref").stdout
    notes = sorted(str(path) for path in (trained.root / "runs/retrain").glob("*"))
    said = trained.command("--dry-run")
    assert "champion: encoder@v0.1.0" in said
    assert "the sources have changed" in said
    assert "stages that would or may run: shard, fit" in said
    assert "gains at least 0" in said
    assert "pushed: nowhere" in said
    assert trained.own() == before
    assert trained.run("git", "for-each-ref").stdout == refs
    assert sorted(str(path) for path in (trained.root / "runs/retrain").glob("*")) == notes
    trained.once()
    said = trained.command("--dry-run")
    assert "so nothing would be trained" in said


def test_options_belong_together(trained: RetrainingProject) -> None:
    for wrong in (("--serve",), ("--once", "--cron", "* * * * *"), ("--once", "--reason", "x")):
        trained.command(*wrong, code=2)
