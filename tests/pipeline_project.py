"""A copy of this repository as a project of its own: tiny data and model, own git and DVC."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import yaml

from mae.data import reasons
from mae.data.digits import DRAWINGS, SCENE_HEIGHT, SCENE_WIDTH, digit_images, digit_scenes
from tests.data import zoo
from tests.pipelines.project import ROOT, Project

PATIENCE_SECONDS = 1500  # for a machine with much else to do

TINY: dict[str, Any] = {
    "data.splits.val": 0.15,
    "data.splits.test": 0.25,
    "model.dim": 32,
    "model.depth": 1,
    "model.heads": 2,
    "model.decoder": {"width": 16, "depth": 1, "heads": 2},
    "pretrain.epochs": 32,
    "pretrain.batch": 16,
    "pretrain.warmup_epochs": 1,
    "pretrain.precision": "fp32",
    "evaluate.protocols": ["knn", "linear_probe", "finetune"],
    "evaluate.knn.k": [5, 10, 20],
    "evaluate.linear_probe.seeds": 1,
    "evaluate.linear_probe.blr": [20.0],
    "evaluate.linear_probe.epochs": 3,
    "evaluate.finetune.budgets": [
        {"labels_per_class": 2, "epochs": 2, "seeds": 1},
        {"labels_per_class": None, "epochs": 1, "seeds": 1},
    ],
    "evaluate.finetune.precision": "fp32",
    "evaluate.detection.epochs": 1,
    "export.parity.images": 8,
    "export.on_refusal": "leave_out",
    "benchmark": {"batches": [1, 2], "rounds": 1, "seconds": 0.02, "compile": False, "threads": 1},
    "runtime.device": "cpu",
    "runtime.workers": 1,
    "runtime.cache_mb": 64,
    "runtime.log_every": 4,
}


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code and all that it said."""

    code: int
    said: str

    @property
    def stages_run(self) -> list[str]:
        """Return the stages whose command `dvc repro` started, in order."""
        begun = (line for line in self.said.splitlines() if line.startswith("Running stage '"))
        return [line.split("'")[1] for line in begun]


class PipelineProject(Project):
    """The repository's own files, committed, with other parameters and nothing run yet."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.environment |= {
            "PYTHONPATH": str(root),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_SYSTEM": "/dev/null",
            "DVC_GLOBAL_CONFIG_DIR": str(root.parent / "dvc-global"),
            "DVC_SYSTEM_CONFIG_DIR": str(root.parent / "dvc-system"),
            "DVC_SITE_CACHE_DIR": str(root / ".dvc/tmp/site"),
        }
        if os.environ.get("PYTHONDONTWRITEBYTECODE"):
            # Where no compiled files may be kept, every stage would compile its libraries anew.
            self.environment |= {
                "PYTHONDONTWRITEBYTECODE": "",
                "PYTHONPYCACHEPREFIX": str(root.parent / "pycache"),
            }

    @classmethod
    def create(cls, root: Path, **changes: Any) -> "PipelineProject":
        _copy_sources(root)
        project = cls(root)
        project.set(**TINY)
        project.set(**changes)
        project.run("git", "init", "-q", "-b", "main")
        project.name_author()
        project.commit("The repository, with tiny parameters")
        return project

    def copy(self, name: str) -> "PipelineProject":
        """Return a copy, beside this one, of everything: results, runs and DVC's cache."""
        root = self.root.parent / name
        shutil.copytree(self.root, root, symlinks=True)
        return PipelineProject(root)

    def clone(self, name: str) -> "PipelineProject":
        """Return what `git clone` gives, beside this one."""
        root = self.root.parent / name
        self.run("git", "clone", "-q", str(self.root), str(root))
        other = PipelineProject(root)
        other.name_author()
        return other

    def name_author(self) -> None:
        self.run("git", "config", "user.email", "test@example.org")
        self.run("git", "config", "user.name", "Test")

    # --- parameters -------------------------------------------------------------------------

    def set(self, **changes: Any) -> None:
        """Change params.yaml: names are dotted, as in `evaluate.knn.k`."""
        path = self.root / "params.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, value in changes.items():
            *sections, key = name.split(".")
            section = content
            for part in sections:
                section = section[part]
            section[key] = value
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    # --- commands ---------------------------------------------------------------------------

    def begin(self, *arguments: str) -> "Running":
        """Start `python ARGUMENTS`; its output goes to a file of its own."""
        log = self.root.parent / f"{self.root.name}-{time.monotonic_ns()}.log"
        return Running(self.start(*arguments, log=log), log)

    def dvc(self, *arguments: str) -> Ended:
        """Run `dvc ARGUMENTS` to its end; it must do well."""
        ended = self.begin("-m", "dvc", *arguments).end()
        assert ended.code == 0, ended.said
        return ended

    # --- what is there ----------------------------------------------------------------------

    def read_text(self, name: str) -> str:
        return (self.root / name).read_text(encoding="utf-8")

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_text(name))

    def contents(self, *names: str) -> dict[str, bytes]:
        """Return path -> bytes of files, and of all files below folders."""
        found = [self.root / name for name in names]
        found += [path for folder in found for path in folder.rglob("*")]
        return {
            str(path.relative_to(self.root)): path.read_bytes() for path in found if path.is_file()
        }

    def steps_saved(self) -> int:
        """Return the step of the newest checkpoint of pretraining, 0 when there is none."""
        found = self.root.glob("runs/pretrain/*/checkpoints/step-???????")
        return max((int(folder.name.removeprefix("step-")) for folder in found), default=0)

    def processes_of(self, stage: str) -> list[psutil.Process]:
        """Return the processes of a stage; the one that the others come from is the first."""
        command = ["-m", f"pipelines.stages.{stage}"]
        found = [one for one in self.alive() if _arguments(one)[:2] == command]
        ids = {one.pid for one in found}
        return sorted(found, key=lambda one: one.ppid() in ids)


class Running:
    """A command that was started, and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, which must come true before the command ends."""
        while not condition():
            assert self._process.poll() is None, self._said()
            time.sleep(0.02)

    def end(self) -> Ended:
        """Wait for the command to end."""
        return Ended(self._process.wait(PATIENCE_SECONDS), self._said())

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()[1:]
    except psutil.NoSuchProcess:
        return []


def _copy_sources(root: Path) -> None:
    """Copy what git would commit, but no results: they are of other data."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        source, target = ROOT / name, root / name
        if name == "dvc.lock" or name.startswith("artifacts/") or not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


# --- sources ------------------------------------------------------------------------------------


def class_folders(folder: Path, count: int) -> dict[str, str | None]:
    """Write `count` images of the embedded digits into a folder for each class, and the zoo.

    Return what becomes of every file: its path -> the reason it is quarantined for, or None.
    """
    expected: dict[str, str | None] = {}
    for number, record in enumerate(islice(digit_images(0), 0, count * DRAWINGS, DRAWINGS)):
        name = f"{record.label}/{number:04d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(record.image.read())
        expected[name] = None
    return expected | {f"3/{name}": reason for name, reason in zoo.build(folder / "3").items()}


def coco_folder(folder: Path, count: int) -> dict[str, str | None]:
    """Write `count` scenes of the embedded digits as COCO has them, the last one an empty file.

    Return what becomes of every file, as `class_folders` does.
    """
    scenes = list(islice(digit_scenes(0), count))
    names = [f"{number:04d}.png" for number in range(len(scenes))]
    categories = [{"id": 1 + digit, "name": str(digit)} for digit in range(10)]
    images = [
        {"id": number, "file_name": name, "height": SCENE_HEIGHT, "width": SCENE_WIDTH}
        for number, name in enumerate(names)
    ]
    annotations = [
        {**mark, "category_id": 1 + int(mark.pop("category")), "image_id": number}
        for number, scene in enumerate(scenes)
        for mark in (dict(found) for found in scene.annotations or ())
    ]
    for number, mark in enumerate(annotations):
        mark["id"] = number
    (folder / "images").mkdir(parents=True)
    for name, scene in zip(names, scenes, strict=True):
        (folder / "images" / name).write_bytes(scene.image.read())
    (folder / "images" / names[-1]).write_bytes(b"")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return dict.fromkeys(names) | {names[-1]: reasons.EMPTY}
