"""What promotion needs of git: is the tree clean, what did a commit hold, record results."""

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from mae.errors import MaestroError

RESULTS = ("dvc.lock", "artifacts/metrics")  # what the pipeline changes and git tracks


def git(root: Path, *arguments: str) -> str:
    """Return what `git arguments` prints in `root`. Raises MaestroError with what git says."""
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        raise MaestroError(f"git {arguments[0]} failed in {root.resolve()}: {said}")
    return done.stdout


def commit_of(root: Path, revision: str) -> str:
    try:
        return git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    except MaestroError:
        raise MaestroError(f"there is no commit '{revision}' in {root.resolve()}") from None


def changed_files(root: Path) -> list[str]:
    """Return the tracked files that differ from the last commit."""
    lines = git(root, "status", "--porcelain", "--untracked-files=no").splitlines()
    return [line[3:] for line in lines]


def require_clean(root: Path, *, except_results: bool = False) -> None:
    """Raise MaestroError when the tree differs from its commit: what ran could not be had again.

    `except_results` allows for what the pipeline itself has just written.
    """
    changed = changed_files(root)
    if except_results:
        changed = [file for file in changed if not file.startswith(RESULTS)]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise MaestroError(
            f"uncommitted changes in {', '.join(changed[:3])}{more}: a version must be what a "
            "commit holds, so commit them (git commit -a) or put them aside (git stash) first"
        )


def record_results(root: Path, message: str) -> str:
    """Commit dvc.lock and the metrics, where they changed; return the commit that holds them."""
    present = [path for path in RESULTS if (root / path).exists()]
    git(root, "add", "--", *present)
    if git(root, "diff", "--cached", "--name-only", "--", *present).strip():
        git(root, "commit", "--quiet", "--message", message, "--", *present)
    return commit_of(root, "HEAD")


def file_at(root: Path, commit: str, path: str) -> str:
    """Return the text of a file as `commit` holds it; `path` counts from `root`."""
    return git(root, "show", f"{commit}:./{path}")


def metrics_at(root: Path, commit: str, folder: str = "artifacts/metrics") -> dict[str, Any]:
    """Return `{file: content}` of the metrics that `commit` holds."""
    names = git(root, "ls-tree", "--name-only", commit, f"{folder}/").splitlines()
    return {
        Path(name).stem: json.loads(file_at(root, commit, name))
        for name in names
        if name.endswith(".json")
    }


def yaml_at(root: Path, path: str, commit: str) -> dict[str, Any]:
    """Return a YAML file as `commit` holds it; {} when it holds none."""
    if not git(root, "ls-tree", "--name-only", commit, path).strip():
        return {}
    return yaml.safe_load(file_at(root, commit, path)) or {}


def working_yaml(root: Path, path: str) -> dict[str, Any]:
    """Return a YAML file as it lies in the working tree; {} when there is none."""
    file = root / path
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.exists() else {}
