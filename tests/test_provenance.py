import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from mae import provenance
from mae.params import read_params
from mae.provenance import commit, context

ROOT = Path(__file__).parents[1]


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "mae").mkdir()
    (tmp_path / "mae" / "code.py").write_text("1\n")
    (tmp_path / "dvc.lock").write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_says_what_is_needed_to_judge_a_number() -> None:
    params = read_params(ROOT / "params.yaml")
    found = context(
        "knn",
        params,
        ["evaluate.knn", "seed"],
        data_fingerprint="abc",
        device=torch.device("cpu"),
        seconds=1.234,
    )
    assert found["params"]["evaluate.knn"]["temperature"] == params.evaluate.knn.temperature
    assert found["params"]["seed"] == found["seed"] == params.seed
    assert found["data_fingerprint"] == "abc"
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["gpu"] is None
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in torch.__version__
    json.dumps(found, allow_nan=False)


def test_the_commit_is_clean_until_code_changes(repository: Path) -> None:
    clean = commit(repository)
    assert clean is not None and re.fullmatch("[0-9a-f]{40}", clean)
    (repository / "dvc.lock").write_text("2\n")
    (repository / "notes.txt").write_text("mine\n")
    assert commit(repository) == clean
    (repository / "mae" / "new.py").write_text("2\n")
    assert commit(repository) == f"{clean}-dirty"
    (repository / "mae" / "new.py").unlink()
    (repository / "mae" / "code.py").write_text("2\n")
    assert commit(repository) == f"{clean}-dirty"


def test_outside_git_and_inside_a_foreign_repository_there_is_none(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert commit(tmp_path_factory.mktemp("plain")) is None
    inside = repository / "site-packages"
    inside.mkdir()
    assert commit(inside) is None


def test_without_git_there_is_none(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit(repository) is None
    assert provenance._cpu_model()
