"""Fixtures: a DVC project in a temporary folder, and one Prefect server for the session."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.project import ROOT, STAGE, Project
from tests.pipelines.servers import PrefectServer


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template") / "project"
    root.mkdir()
    project = Project(root)
    project.run("git", "init", "-q", "-b", "main")
    project.run("git", "config", "user.email", "test@example.org")
    project.run("git", "config", "user.name", "Test")
    project.python("-m", "dvc", "init", "-q")
    shutil.copy(ROOT / ".dvc" / "config", root / ".dvc" / "config")
    shutil.copy(ROOT / "params.yaml", root / "params.yaml")
    (root / "stage.py").write_text(STAGE, encoding="utf-8")
    (root / ".gitignore").write_text("running-*\n/runs/\n", encoding="utf-8")
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Iterator[Project]:
    root = tmp_path / "project"
    shutil.copytree(template, root)
    project = Project(root)
    yield project
    project.end_all()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the API address of a real server on the loopback address."""
    server = PrefectServer(tmp_path_factory.mktemp("prefect"))
    try:
        server.start()
        yield server.url
    finally:
        server.kill()
