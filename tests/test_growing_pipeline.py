"""Data that grow through DVC: only what is new is stored and pushed, here and from a clone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data import zoo
from tests.pipeline_project import PipelineProject

pytestmark = pytest.mark.slow

SHARD = ("repro", "--force", "--single-item", "shard@images")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("growing")


def files_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def pushed(project: PipelineProject, storage: Path) -> set[bytes]:
    """Push, and return the content of the files that came into the remote."""
    before = files_of(storage)
    project.dvc("push", "shard@images")
    after = files_of(storage)
    return {content for name, content in after.items() if name not in before}


def shards_of(project: PipelineProject) -> dict[str, bytes]:
    folder = project.root / "data/shards/images"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.mdb")}


def test_only_what_is_new_is_pushed(place: Path) -> None:
    storage = place / "storage"
    for name in ("left", "right"):
        zoo.write_images(place / "images" / name, 100)
    project = PipelineProject.create(
        place / "project",
        **{
            "data.images": {"source": "folder", "path": str(place / "images")},
            "data.scenes": {"source": "none", "path": None},
        },
    )
    project.dvc("remote", "add", "-d", "storage", str(storage))
    project.dvc(*SHARD)
    first = shards_of(project)
    assert set(first.values()) <= pushed(project, storage)
    project.commit("Data")

    zoo.write_images(place / "images" / "new", 30, height=40)
    project.dvc(*SHARD)
    second = shards_of(project)
    assert first.items() < second.items()
    came = pushed(project, storage)
    assert not came & set(first.values())
    assert {second[name] for name in second.keys() - first.keys()} < came
    project.commit("More data")

    clone = project.clone("clone")  # another machine, which has to pull what it builds upon
    clone.dvc("pull", "shard@images")
    removals = clone.root / "data/removals.txt"
    removals.write_text(removals.read_text() + "new/0007.png\n")
    assert clone.dvc("repro", "shard@images").stages_run == ["shard@images"]
    third = shards_of(clone)
    changed = {name for name in second if second[name] != third.get(name)}
    assert len(changed) == 1
    assert changed <= second.keys() - first.keys()
    assert not pushed(clone, storage) & set(second.values())
    assert clone.dvc("repro", "shard@images").stages_run == []
