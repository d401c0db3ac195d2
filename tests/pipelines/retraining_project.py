"""A project that retrains in seconds: its images are one file that says how good the model gets."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from mae.errors import MaestroError
from pipelines.registry import champion
from tests.pipelines.project import Project

FLOW = ("-m", "pipelines.flows.retrain")
TREE = Path("runs/retrain/worktree")
PIPELINE = """
artifacts:
  encoder: {path: model}
stages:
  shard:
    cmd: cp images/world shards
    outs: [shards]
  fit:
    cmd: python fit.py
    deps: [fit.py, shards]
    outs: [model]
    metrics: [{artifacts/metrics/linear_probe.json: {cache: false}}]
"""
FIT = """
import time
from pathlib import Path
from pipelines.harness import run_stage

def main(params, arguments):
    outside = Path("../../..")  # of the worktree: the project itself
    with (outside / "fitted").open("a") as file:
        file.write("fit\\n")
    time.sleep(float((outside / "seconds").read_text()))
    model = Path("shards").read_text()
    Path("model").write_text(model)
    metrics = Path("artifacts/metrics/linear_probe.json")
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(model)

if __name__ == "__main__":
    run_stage("fit", main)
"""
IGNORED = "running-*\n/runs/\n/images/\n/seconds\n/fitted\n/model\n/shards\n"


class RetrainingProject(Project):
    """Its `fitted` has a line for every time that something was trained."""

    @classmethod
    def create(cls, template: Path, root: Path) -> "RetrainingProject":
        shutil.copytree(template, root)
        project = cls(root)
        project.stages(PIPELINE)
        (root / "fit.py").write_text(FIT, encoding="utf-8")
        (root / ".gitignore").write_text(IGNORED, encoding="utf-8")
        project.set(data={"images": {"source": "folder", "path": "images"}})
        project.world(0.5)
        project.commit()
        return project

    def copy(self, root: Path) -> "RetrainingProject":
        """Return a copy with everything, its worktree too."""
        shutil.copytree(self.root, root, symlinks=True)
        link = root / TREE / ".git"
        link.write_text(f"gitdir: {root}/.git/worktrees/worktree\n", encoding="utf-8")
        other = RetrainingProject(root)
        other.run("git", "worktree", "repair", str(root / TREE))
        return other

    def set(self, **sections: Any) -> None:
        """Change params.yaml: the keys given, of each section."""
        path = self.root / "params.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, changes in sections.items():
            content[section] |= changes
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def world(self, accuracy: float, seconds: float = 0) -> None:
        """Change what the pipeline reads, which DVC cannot see."""
        (self.root / "images").mkdir(exist_ok=True)
        (self.root / "images/world").write_text(f'{{"accuracy": {accuracy}}}')
        (self.root / "seconds").write_text(str(seconds))

    def once(self, *, code: int = 0, anyway: bool = False) -> str:
        """Retrain without a server, in this process, and return what was said.

        It spares the seconds that Prefect takes to import; `command` is the real thing.
        """
        from pipelines.flows.retraining_flow import retrain

        said: list[str] = []
        listener = logging.Handler()
        listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        log = logging.getLogger("pipelines")
        before = log.level
        log.addHandler(listener)
        log.setLevel(logging.INFO)
        try:
            with mock.patch.dict(os.environ, self.environment, clear=True):
                retrain.fn(root=str(self.root), anyway=anyway)
            ended = 0
        except MaestroError as error:
            said.append(str(error))
            ended = error.exit_code
        finally:
            log.removeHandler(listener)
            log.setLevel(before)
        assert ended == code, said
        return "\n".join(said)

    def command(self, *arguments: str, code: int = 0) -> str:
        """Run `python -m pipelines.flows.retrain` and return what it said."""
        done = self.python(*FLOW, *arguments, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr + done.stdout

    @property
    def trainings(self) -> int:
        file = self.root / "fitted"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def serving(self) -> str | None:
        found = champion(self.root, "encoder", "prod")
        return found.version if found else None

    def decisions(self) -> list[dict[str, Any]]:
        files = sorted(self.root.glob("runs/retrain/*/decision.json"))
        return [json.loads(file.read_text()) for file in files]

    def own(self) -> dict[str, Any]:
        """Return what retraining may never touch: a person's branch, index and files."""
        files = {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and not {".git", "runs"} & set(path.relative_to(self.root).parts)
        }
        skipped = [name for name in files if name.startswith((".dvc/tmp", ".dvc/cache", "fitted"))]
        for name in skipped:
            del files[name]
        git = self.root / ".git"
        return {
            **files,
            "status": self.run("git", "status", "--porcelain=v2", "--branch").stdout,
            "HEAD": (git / "HEAD").read_bytes(),
            "main": self.run("git", "rev-parse", "HEAD").stdout,
            "index": self.run("git", "ls-files", "--stage").stdout,
        }
