"""Data that grow through DVC: only what is new is stored and pushed, here and from a clone."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from mae.data.digits import DRAWINGS, digit_images
from pipelines.registry import champion
from tests.data import zoo
from tests.pipeline_project import PipelineProject

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

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


# --- retrained on what is new ---------------------------------------------------------------------

TREE = "runs/retrain/worktree"


def digits(folder: Path, first: int, count: int) -> None:
    """Write `count` of the embedded digits, from the `first` on, into a folder for each class."""
    records = islice(digit_images(0), first * DRAWINGS, (first + count) * DRAWINGS, DRAWINGS)
    for number, record in enumerate(records, first):
        path = folder / str(record.label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record.image.read())


def retrained(project: PipelineProject) -> str:
    ended = project.begin("-m", "pipelines.flows.retrain", "--once").end()
    assert ended.code == 0, ended.said
    return ended.said


def decision(project: PipelineProject) -> dict[str, Any]:
    files = sorted(project.root.glob("runs/retrain/*/decision.json"))
    return json.loads(files[-1].read_text())


def at(project: PipelineProject, version: str, path: str) -> Any:
    return json.loads(project.run("git", "show", f"encoder@{version}:{path}").stdout)


def serving(project: PipelineProject) -> str:
    found = champion(project.root, "encoder", "prod")
    assert found is not None
    return found.version


def judged_by(project: PipelineProject, margin: float) -> None:
    gate = {"metric": "linear.accuracy", "margin": margin}
    project.set(**{"retrain.gate": gate | {"comparison": {"resamples": 200, "confidence": 0.9}}})
    project.commit(f"A margin of {margin}")


def test_new_images_are_trained_on_and_judged_by_the_same_exam(place: Path) -> None:
    images = place / "digits"
    digits(images, 0, 400)
    project = PipelineProject.create(
        place / "nightly",
        **{
            "data.images": {"source": "folder", "path": str(images)},
            "data.scenes": {"source": "none", "path": None},
            "pretrain.epochs": 2,
            "evaluate.protocols": ["linear"],
            "evaluate.linear": {"feature": "mean", "logistic_c": [1.0], "svm_c": [0.001]},
        },
    )
    pipeline = yaml.safe_load(project.read_text("dvc.yaml"))
    for stage in ("detect", "export", "benchmark", "report"):  # which decide nothing here
        pipeline["stages"].pop(stage, None)
    pipeline["artifacts"].pop("onnx", None)
    (project.root / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    judged_by(project, -1.0)
    assert "encoder@v0.1.0 now serves: no champion yet" in retrained(project)
    exam = at(project, "v0.1.0", "data/reference/exam.json")
    assert set(exam["images"]) <= {str(path.relative_to(images)) for path in images.rglob("*.png")}
    assert "up to date" in project.dvc("--cd", TREE, "status").said
    first = shards_of(PipelineProject(project.root / TREE))

    digits(images, 400, 100)
    assert "encoder@v0.2.0 now serves" in retrained(project)
    found = decision(project)
    assert found["comparison"]["images"] == len(exam["images"])
    assert found["comparison"]["exam"]["vanished"] == 0
    assert found["drift"].keys() >= {"images_mean", "images_label"}
    assert at(project, "v0.2.0", "data/reference/exam.json") == exam
    shards = [
        at(project, name, "artifacts/metrics/shard-images.json") for name in ("v0.1.0", "v0.2.0")
    ]
    assert [one["accepted"] for one in shards] == [400, 500]
    assert at(project, "v0.2.0", "data/reference/images.json")["fingerprint"]
    assert first.items() <= shards_of(PipelineProject(project.root / TREE)).items()
    assert "up to date" in project.dvc("--cd", TREE, "status").said

    judged_by(project, 0.9)  # nothing gains so much
    digits(images, 500, 50)
    assert "the champion stays: on the same" in retrained(project)
    assert serving(project) == "v0.2.0"
    assert decision(project)["comparison"]["win_share"] == 0
    assert project.run("git", "status", "--porcelain").stdout == ""
