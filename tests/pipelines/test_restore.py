"""Back-up and restore: a clone with nothing but the repository and DVC's remote."""

import hashlib
import shutil
from pathlib import Path

from tests.pipelines.project import Project

PIPELINE = """
artifacts:
  encoder: {path: artifacts/pretrain}
  onnx: {path: artifacts/export}
stages:
  make:
    cmd: >-
      mkdir -p artifacts/pretrain artifacts/export artifacts/metrics &&
      cp SOURCE artifacts/pretrain/encoder.safetensors &&
      cp SOURCE artifacts/export/encoder.onnx &&
      echo '{"accuracy": 0.9}' > artifacts/metrics/knn.json
    outs: [artifacts/pretrain, artifacts/export]
    metrics: [{artifacts/metrics/knn.json: {cache: false}}]
"""


def content(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "version.json"
    }


def make_version(project: Project, weights: bytes) -> dict[str, str]:
    """Run the pipeline, promote what it makes, back it up; return the files' hashes."""
    (project.root.parent / "weights").write_bytes(weights)
    project.python("-m", "dvc", "repro", "--force", "--quiet")
    project.commit("results")
    project.python("-m", "pipelines.registry", "promote", "encoder")
    project.run("git", "push", "--quiet", "--follow-tags", "origin", "main")
    project.python("-m", "dvc", "push", "--quiet", "--all-tags")
    folders = ("artifacts/pretrain", "artifacts/export")
    return {
        f"{Path(folder).name}/{name}": digest
        for folder in folders
        for name, digest in content(project.root / folder).items()
    }


def test_a_clone_and_the_remote_give_everything_back(project: Project, tmp_path: Path) -> None:
    store, repository = tmp_path / "store", tmp_path / "repository.git"
    project.run("git", "init", "--bare", "--quiet", "-b", "main", str(repository))
    project.run("git", "remote", "add", "origin", str(repository))
    project.python("-m", "dvc", "remote", "add", "--quiet", "--default", "store", str(store))
    project.stages(PIPELINE.replace("SOURCE", "../weights"))
    (project.root / ".gitignore").write_text("/runs/\n/artifacts/pretrain\n/artifacts/export\n")
    project.commit("pipeline")
    first = make_version(project, b"first" * 1000)
    second = make_version(project, b"second" * 1000)
    assert first != second
    shutil.rmtree(project.root)

    clone = Project(tmp_path / "clone")
    clone.root.mkdir()
    clone.run("git", "clone", "--quiet", str(repository), ".")
    said = clone.python("-m", "pipelines.registry", "list").stdout
    assert "v0.2.0" in said and "v0.1.0" in said
    clone.python("-m", "dvc", "pull", "--quiet")
    assert content(clone.root / "artifacts/pretrain") == {
        "encoder.safetensors": second["pretrain/encoder.safetensors"]
    }
    assert not clone.python("-m", "dvc", "status", "--quiet").stdout
    for name, expected in (("encoder#prod", second), ("encoder@v0.1.0", first)):
        folder = clone.python("-m", "pipelines.registry", "fetch", name).stdout.strip()
        assert content(clone.root / folder) == expected
    clone.run("git", "config", "user.email", "test@example.org")
    clone.run("git", "config", "user.name", "Test")
    clone.python("-m", "pipelines.registry", "rollback", "encoder")
    folder = clone.python("-m", "pipelines.registry", "fetch", "encoder#prod").stdout.strip()
    assert content(clone.root / folder) == first
