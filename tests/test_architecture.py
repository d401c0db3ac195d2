"""The rules of the house: who may import whom, and how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "mae").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")])

# What each room of mae/ may import besides itself. `cli` is the door and sees everything.
ALLOWED = {
    "data": {"params", "errors", "files", "hashing", "pixels"},
    "model": {"params", "errors", "files", "hashing", "pixels"},
    "training": {"data", "model", "params", "errors", "files", "hashing", "pixels"},
}
ALLOWED["evaluation"] = ALLOWED["training"] | {"training", "provenance"}
ALLOWED["export"] = ALLOWED["evaluation"] | {"evaluation"}
ALLOWED["report"] = ALLOWED["export"] | {"export"}
BOTTOM = {"params", "errors", "files", "hashing", "pixels", "provenance"}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_of(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("mae.")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    top, *inside = path.relative_to(ROOT).with_suffix("").parts
    foreign = {name.split(".")[0] for name in imported(path)}
    if top == "mae":
        assert not foreign & {"prefect", "dvc", "pipelines"}
        room = inside[0]
        if room in ALLOWED:
            assert rooms_of(path) - {room, "__version__"} <= ALLOWED[room]
        elif room in BOTTOM:
            assert rooms_of(path) - {"__version__"} <= BOTTOM


def test_relative_imports_are_not_used() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 420


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipelines/stages").glob("*.py")), ids=lambda p: p.name
)
def test_stages_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 70


def test_mae_imports_without_the_orchestrators() -> None:
    """Import every module of mae/ where dvc, prefect and great_expectations cannot be found."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if path.is_relative_to(ROOT / "mae")
    ]
    program = f"""
import importlib, sys
for name in ("dvc", "prefect", "great_expectations", "pipelines"):
    sys.modules[name] = None
for name in {modules!r}:
    importlib.import_module(name)
print(len({modules!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules) > 40


def test_no_machine_or_index_stands_in_tracked_files() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    unwanted = ("/" + "tmp/bash", "files.python" + "hosted", "pypi" + ".org")
    for name in listed.stdout.split("\n"):
        path = ROOT / name
        if path.is_file() and path.suffix != ".png":
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not [word for word in unwanted if word in text], name
