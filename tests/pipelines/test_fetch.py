"""The files of a version: brought whole, checked, bit for bit; and what may be in the way."""

import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mae.errors import MaestroError
from pipelines import fetching
from pipelines.fetching import dvc_hash, fetch
from pipelines.registry import contents, named, promote, rollback
from tests.pipelines.project import Project
from tests.ports import free_port

PIPELINE = """
artifacts:
  encoder: {path: artifacts/pretrain, type: model}
  onnx: {path: artifacts/export, type: model}
  card: {path: artifacts/card.md, type: document}
stages:
  pretrain:
    cmd: mkdir -p artifacts/pretrain && cp v artifacts/pretrain/encoder.safetensors
    deps: [v]
    outs: [artifacts/pretrain]
  export:
    cmd: >
      mkdir -p artifacts/export/data && cp v artifacts/export/encoder.onnx &&
      echo external >artifacts/export/data/weights && cp v artifacts/card.md
    deps: [v]
    outs: [artifacts/export, artifacts/card.md]
"""


def make_version(project: Project, text: str) -> None:
    (project.root / "v").write_text(text)
    project.python("-m", "dvc", "repro", "-q")
    project.commit()
    promote(project.root, "encoder", "prod", message=text)


@pytest.fixture(scope="module")
def pushed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a project of v0.1.0 and v0.2.0, and the remote that both are in."""
    place = tmp_path_factory.mktemp("pushed")
    shutil.copytree(template, place / "project")
    project = Project(place / "project")
    project.stages(PIPELINE)
    project.python("-m", "dvc", "remote", "add", "-q", "--default", "store", "../remote")
    for text in ("first", "second"):
        make_version(project, text)
        # Not --all-tags at the end: there, DVC takes a relative address from the root of the disk.
        project.python("-m", "dvc", "push", "-q")
    return place


@pytest.fixture
def project(pushed: Path, tmp_path: Path) -> Iterator[Project]:
    shutil.copytree(pushed, tmp_path / "place", symlinks=True)
    project = Project(tmp_path / "place" / "project")
    yield project
    project.end_all()


def cache(project: Project, md5: str = "") -> Path:
    folder = project.root / ".dvc/cache/files/md5"
    return folder / md5[:2] / md5[2:] if md5 else folder


def remote(project: Project) -> Path:
    return project.root.parent / "remote"


def fetched(project: Project, name: str) -> Path:
    return fetch(project.root, named(project.root, name))


def bits(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def spoil(path: Path) -> None:
    """Change a file that cannot be written to, as a failing disk would: its mode stays."""
    path.chmod(0o644)
    path.write_bytes(b"?" + path.read_bytes()[1:])
    path.chmod(0o444)


# --- what is brought --------------------------------------------------------------------------


def test_every_artifact_of_the_commit_is_brought(project: Project) -> None:
    folder = fetched(project, "encoder@v0.1.0")
    assert folder == project.root / "runs/models/encoder@v0.1.0"
    assert (folder / "pretrain/encoder.safetensors").read_text() == "first"
    assert (folder / "export/encoder.onnx").read_text() == "first"
    assert (folder / "export/data/weights").read_text() == "external\n"
    assert (folder / "card.md").read_text() == "first"
    assert json.loads((folder / "version.json").read_text())["version"] == "v0.1.0"
    held = contents(project.root, "encoder@v0.1.0")
    assert {name: dvc_hash(folder / Path(one.path).name) for name, one in held.items()} == {
        name: one.hash for name, one in held.items()
    }
    for path in folder.glob("*/**/*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o444
            assert path.stat().st_nlink == 1 and not path.is_symlink()
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_hashes_are_those_of_dvc(project: Project) -> None:
    odd = project.root / "odd"
    for name in ("b/ä ö.txt", "b-a/x", "b/a/empty", "Z", "a.txt"):
        (odd / name).parent.mkdir(parents=True, exist_ok=True)
        (odd / name).write_text(name if "empty" not in name else "")
    project.python("-m", "dvc", "add", "-q", "odd")
    recorded = yaml.safe_load((project.root / "odd.dvc").read_text())["outs"][0]["md5"]
    assert dvc_hash(odd) == recorded


def test_what_is_there_is_checked_and_kept_or_brought_again(project: Project) -> None:
    folder = fetched(project, "encoder#prod")
    path = folder / "export/encoder.onnx"
    first = path.stat().st_ino
    assert fetched(project, "encoder#prod") == folder
    assert path.stat().st_ino == first
    spoil(path)
    assert fetched(project, "encoder#prod") == folder
    assert path.read_text() == "second"
    (folder / "pretrain/encoder.safetensors").unlink()
    (folder / "export/more").touch()
    before = bits(fetched(project, "encoder#prod"))
    assert "pretrain/encoder.safetensors" in before and "export/more" not in before


def test_a_version_of_the_same_name_at_another_commit_is_another(project: Project) -> None:
    folder = fetched(project, "encoder@v0.2.0")
    project.run("git", "tag", "-d", "encoder@v0.2.0", "encoder#prod#2", "encoder#prod!#3")
    make_version(project, "third")
    assert fetched(project, "encoder@v0.2.0") == folder
    assert (folder / "export/encoder.onnx").read_text() == "third"


def test_rollback_brings_back_the_champion_bit_for_bit(project: Project) -> None:
    first = bits(fetched(project, "encoder@v0.1.0"))
    second = bits(fetched(project, "encoder#prod"))
    assert first != second
    shutil.rmtree(project.root / "runs")
    rollback(project.root, "encoder", "prod")
    assert bits(fetched(project, "encoder#prod")) == first


def test_a_fresh_clone_needs_tags_and_the_remote(project: Project) -> None:
    project.run("git", "clone", "-q", str(project.root), str(project.root.parent / "clone"))
    clone = Project(project.root.parent / "clone")
    expected = bits(fetched(project, "encoder#prod"))
    project.root.rename(project.root.parent / "gone")
    said = clone.python("-m", "pipelines.registry", "fetch", "encoder#prod").stdout.strip()
    assert bits(clone.root / said) == expected
    into = clone.python(
        "-m", "pipelines.registry", "fetch", "encoder@v0.1.0", "--into", "elsewhere/model"
    )
    assert into.stdout.strip() == "elsewhere/model"
    assert (clone.root / "elsewhere/model/card.md").read_text() == "first"


def test_two_at_once_bring_it_once(project: Project) -> None:
    shutil.rmtree(cache(project))
    command = ("-m", "pipelines.registry", "fetch", "encoder#prod")
    both = [project.start(*command) for _ in range(2)]
    assert [one.wait(300) for one in both] == [0, 0]
    assert (project.root / "runs/models/encoder@v0.2.0/export/encoder.onnx").read_text() == "second"
    assert sorted(path.name for path in (project.root / "runs/models").iterdir()) == [
        ".lock",
        "encoder@v0.2.0",
    ]


def test_what_the_commit_has_not_made_is_left_out(project: Project) -> None:
    lock = yaml.safe_load((project.root / "dvc.lock").read_text())
    del lock["stages"]["export"]
    (project.root / "dvc.lock").write_text(yaml.safe_dump(lock))
    project.commit("before there was an export")
    folder = fetch(project.root, promote(project.root, "encoder", "prod"))
    assert sorted(path.name for path in folder.iterdir()) == ["pretrain", "version.json"]


# --- what may be in the way -------------------------------------------------------------------


def nothing_came(project: Project) -> bool:
    folder = project.root / "runs/models"
    return [path.name for path in folder.iterdir()] == [".lock"]


def onnx_hash() -> str:
    return hashlib.md5(b"second").hexdigest()


def test_damage_in_the_cache_is_noticed_and_mended_from_the_remote(project: Project) -> None:
    """DVC trusts what is read-only in its cache: its own checkout would deliver the damage."""
    for md5 in (onnx_hash(), contents(project.root, None)["onnx"].hash):
        spoil(cache(project, md5))
    shutil.rmtree(project.root / "artifacts")
    project.python("-m", "dvc", "checkout", "-q", "artifacts/card.md")
    assert (project.root / "artifacts/card.md").read_text() == "?econd"
    assert (fetched(project, "encoder#prod") / "export/encoder.onnx").read_text() == "second"
    assert dvc_hash(cache(project, onnx_hash())) == onnx_hash()


def test_damage_that_no_remote_can_mend(project: Project) -> None:
    spoil(cache(project, onnx_hash()))
    spoil(remote(project) / "files/md5" / onnx_hash()[:2] / onnx_hash()[2:])
    with pytest.raises(MaestroError, match="the remote 'store' has them damaged, too"):
        fetched(project, "encoder#prod")
    assert nothing_came(project)
    project.python("-m", "dvc", "remote", "remove", "-q", "store")
    damaged = cache(project, onnx_hash()).read_bytes()
    with pytest.raises(MaestroError, match=r"1 are damaged.*no remote to bring them from"):
        fetched(project, "encoder#prod")
    assert cache(project, onnx_hash()).read_bytes() == damaged
    assert nothing_came(project)


def test_a_remote_that_is_not_there(project: Project) -> None:
    shutil.rmtree(cache(project))
    remote(project).rename(project.root.parent / "unplugged")
    with pytest.raises(MaestroError, match=r"'store' does not give them.*dvc push"):
        fetched(project, "encoder#prod")
    assert nothing_came(project)
    (project.root.parent / "unplugged").rename(remote(project))
    assert (fetched(project, "encoder#prod") / "card.md").read_text() == "second"


def test_a_remote_that_refuses(project: Project) -> None:
    shutil.rmtree(cache(project))
    nowhere = f"http://127.0.0.1:{free_port()}/store"
    project.python("-m", "dvc", "remote", "modify", "-q", "store", "url", nowhere)
    with pytest.raises(MaestroError, match=r"lacks 3 file.*the remote 'store'"):
        fetched(project, "encoder#prod")
    assert nothing_came(project)


def test_a_full_disk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bits(fetched(project, "encoder@v0.1.0"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(fetching.shutil, "copyfile", full)
        with pytest.raises(MaestroError, match=r"No space left.*free some space and run again"):
            fetched(project, "encoder#prod")
    assert bits(project.root / "runs/models/encoder@v0.1.0") == before
    assert not (project.root / "runs/models/encoder@v0.2.0").exists()
    assert (fetched(project, "encoder#prod") / "card.md").read_text() == "second"


def test_what_is_not_ours_is_not_replaced(project: Project) -> None:
    mine = project.root / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    for target in (mine, mine / "thesis.tex"):
        with pytest.raises(MaestroError, match="holds no fetched version: name another"):
            fetch(project.root, named(project.root, "encoder#prod"), target)
    assert (mine / "thesis.tex").exists()


def test_two_artifacts_of_one_name(project: Project) -> None:
    project.stages(
        PIPELINE.replace("card: {path: artifacts/card.md", "card: {path: other/export")
        .replace("cp v artifacts/card.md", "mkdir -p other/export")
        .replace("artifacts/card.md", "other/export")
    )
    make_version(project, "clash")
    with pytest.raises(MaestroError, match="would both be called 'export'"):
        fetched(project, "encoder#prod")


@pytest.mark.parametrize(
    "command, said",
    [
        (("encoder@v9.9.9",), "'encoder' has no version v9.9.9; it has: v0.2.0, v0.1.0"),
        (("encoder#staging",), "no version of 'encoder' serves 'staging'; promote one of v0.2.0"),
        (("decoder#prod",), "there is no version yet: promote one"),
        (("encoder",), "names no version: write encoder@v0.1.0 or encoder#prod"),
    ],
)
def test_names_that_are_none(project: Project, command: tuple[str, ...], said: str) -> None:
    ended = project.python("-m", "pipelines.registry", "fetch", *command, check=False)
    assert ended.returncode == 1 and said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_outside_of_a_repository(tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pipelines.registry",
            "--root",
            str(tmp_path),
            "fetch",
            "encoder#prod",
        ],
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1 and "not a git repository" in ended.stderr
    assert "Traceback" not in ended.stderr
