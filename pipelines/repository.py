"""What promotion needs of git: is the tree clean, what did a commit hold, record results."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mae.errors import MaestroError

# What retraining changes and git tracks.
RESULTS = ("dvc.lock", "artifacts/metrics", "data/reference")


def git(root: Path, *arguments: str, hooks: bool = True) -> str:
    """Return what `git arguments` prints in `root`. Raises MaestroError with what git says.

    hooks: whether those of the repository run, which are meant for a person's own commits.
    """
    done = _run(root, arguments, hooks)
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        raise MaestroError(f"git {arguments[0]} failed in {root.resolve()}: {said}")
    return done.stdout


def git_agrees(root: Path, *arguments: str) -> bool:
    """Return whether a git command that asks something, such as `diff --quiet`, says yes."""
    return _run(root, arguments, hooks=True).returncode == 0


def _run(root: Path, arguments: Sequence[str], hooks: bool) -> subprocess.CompletedProcess[str]:
    without = [] if hooks else ["-c", f"core.hooksPath={os.devnull}"]
    return subprocess.run(
        ["git", "-C", str(root), *without, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},  # nobody is there to answer
    )


def commit_of(root: Path, revision: str) -> str:
    try:
        return git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    except MaestroError:
        raise MaestroError(f"there is no commit '{revision}' in {root.resolve()}") from None


def changed_files(root: Path) -> list[str]:
    """Return the tracked files that differ from the last commit."""
    lines = git(root, "status", "--porcelain", "--untracked-files=no").splitlines()
    return [line[3:] for line in lines]


def require_clean(root: Path) -> None:
    """Raise MaestroError when the tree differs from its commit: what ran could not be had again."""
    if changed := changed_files(root):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise MaestroError(
            f"uncommitted changes in {', '.join(changed[:3])}{more}: a version must be what a "
            "commit holds, so commit them (git commit -a) or put them aside (git stash) first"
        )


def record_results(root: Path, message: str) -> str:
    """Commit what the pipeline has changed, if anything; return the commit that holds it."""
    present = [path for path in RESULTS if (root / path).exists()]
    git(root, "add", "--all", "--", *present)
    if git(root, "diff", "--cached", "--name-only", "--", *present).strip():
        git(root, "commit", "--quiet", "--message", message, "--", *present, hooks=False)
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
