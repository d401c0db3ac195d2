"""Versions of an artifact and which of them is in use, kept as git tags in the way of GTO.

`encoder@v0.2.0` names a version, `encoder#prod#3` puts one to use, `encoder#prod!#4` takes one
out of it. So DVC reads them too: `dvc artifacts get URL encoder --stage prod`.

    python -m pipelines.registry list
    python -m pipelines.registry show encoder@v0.2.0
    python -m pipelines.registry promote encoder [--version v0.1.0]
    python -m pipelines.registry rollback encoder
    python -m pipelines.registry fetch encoder#prod

GTO and DVC take a second to load; the tags are read here without either, so that a service may
ask every few seconds what it should be serving.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mae.errors import MaestroError
from pipelines.registry_tags import Tag, next_count, read_tags, release_of
from pipelines.repository import commit_of, git, require_clean, working_yaml, yaml_at

Bump = Literal["major", "minor", "patch"]
FIRST = "v0.1.0"


@dataclass(frozen=True)
class Version:
    """A registered version and the stages (such as 'prod') it now serves."""

    artifact: str
    version: str
    commit: str
    created: datetime
    message: str
    stages: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.artifact}@{self.version}"


@dataclass(frozen=True)
class Content:
    """What a commit holds of an artifact: its path in the project and DVC's hash of it."""

    path: str
    hash: str


# --- what there is ----------------------------------------------------------------------------


def versions(root: Path, artifact: str) -> list[Version]:
    """Return the registered versions of `artifact`, newest first; [] when there is none."""
    commit_of(root, "HEAD")
    return _versions(read_tags(root, artifact))


def find(root: Path, artifact: str, version: str) -> Version:
    """Return one version. Raises MaestroError with those that exist."""
    known = versions(root, artifact)
    for each in known:
        if each.version == version:
            return each
    names = ", ".join(each.version for each in known) or "none yet"
    raise MaestroError(f"'{artifact}' has no version {version}; it has: {names}")


def champion(root: Path, artifact: str, stage: str) -> Version | None:
    """Return the version that serves `stage` now (of several, the one assigned last), or None."""
    tags = read_tags(root, artifact)
    serving = {each.version: each for each in _versions(tags) if stage in each.stages}
    assigned = [version for version in _assignments(tags, stage) if version in serving]
    return serving[assigned[-1]] if assigned else None


def named(root: Path, name: str) -> Version:
    """Return the version that `encoder@v0.2.0` or `encoder#prod` names."""
    artifact, mark, rest = name.partition("@")
    if mark:
        return find(root, artifact, rest)
    artifact, mark, stage = name.partition("#")
    if not mark:
        raise MaestroError(f"'{name}' names no version: write {name}@v0.1.0 or {name}#prod")
    if serving := champion(root, artifact, stage):
        return serving
    known = ", ".join(each.version for each in versions(root, artifact))
    advice = f"promote one of {known}" if known else "there is no version yet: promote one"
    raise MaestroError(f"no version of '{artifact}' serves '{stage}'; {advice}")


def content(root: Path, artifact: str, commit: str | None) -> Content:
    """Return what `commit`, or the working tree where it is None, holds of `artifact`.

    Raises MaestroError when dvc.yaml does not declare it or dvc.lock does not know it.
    """
    where = "the working tree" if commit is None else f"commit {commit[:7]}"
    declared = _declared(root, commit)
    if artifact not in declared:
        known = ", ".join(declared) or "none"
        raise MaestroError(
            f"dvc.yaml of {where} declares no artifact '{artifact}' under 'artifacts:' "
            f"(declared: {known})"
        )
    held = contents(root, commit)
    if artifact not in held:
        path = declared[artifact]
        raise MaestroError(
            f"dvc.lock of {where} has no '{path}': run the pipeline and commit dvc.lock"
        )
    return held[artifact]


def contents(root: Path, commit: str | None) -> dict[str, Content]:
    """Return what `commit`, or the working tree where it is None, holds of every artifact.

    Artifacts that dvc.yaml declares and dvc.lock does not know are left out.
    """
    outs = {
        out["path"]: out["md5"]
        for stage in _read(root, "dvc.lock", commit).get("stages", {}).values()
        for out in stage.get("outs", [])
        if "md5" in out
    }
    declared = _declared(root, commit).items()
    return {name: Content(path, outs[path]) for name, path in declared if path in outs}


def _declared(root: Path, commit: str | None) -> dict[str, str]:
    artifacts = _read(root, "dvc.yaml", commit).get("artifacts", {})
    return {name: about["path"].rstrip("/") for name, about in artifacts.items()}


def _read(root: Path, path: str, commit: str | None) -> dict[str, Any]:
    read = working_yaml if commit is None else partial(yaml_at, commit=commit)
    return read(root, path=path)


def _versions(tags: list[Tag]) -> list[Version]:
    """Return the versions that tags, the oldest first, make, the newest version first."""
    registered: dict[str, Tag] = {}
    for tag in tags:
        if tag.version and tag.cancels:
            registered.pop(tag.version, None)
        elif tag.version:
            registered[tag.version] = tag
    stages = {(tag.commit, tag.stage): not tag.cancels for tag in tags if tag.stage}
    found = [
        Version(
            artifact=tag.artifact,
            version=version,
            commit=tag.commit,
            created=tag.created,
            message=tag.message,
            stages=tuple(
                str(stage) for (commit, stage), on in stages.items() if on and commit == tag.commit
            ),
        )
        for version, tag in registered.items()
    ]
    return sorted(found, key=lambda each: release_of(each.version), reverse=True)


def _assignments(tags: list[Tag], stage: str) -> list[str]:
    """Return the versions that were put to use in `stage`, in that order, repeats included."""
    by_commit = {each.commit: each.version for each in reversed(_versions(tags))}
    assigned = [tag.commit for tag in tags if tag.stage == stage and not tag.cancels]
    return [by_commit[commit] for commit in assigned if commit in by_commit]


# --- what changes it --------------------------------------------------------------------------


def promote(
    root: Path,
    artifact: str,
    stage: str,
    *,
    commit: str | None = None,
    version: str | None = None,
    bump: Bump = "minor",
    message: str | None = None,
) -> Version:
    """Put a version to use in `stage`, alone.

    Without `version`, `commit` becomes one, a `bump` above the last, unless it is one already;
    without `commit` either, HEAD does. Raises MaestroError when HEAD is not what lies in the
    working tree, when the commit holds no artifact, or while another promotion is under way.
    """
    with _alone(root, artifact):
        return _promote(root, artifact, stage, commit, version, bump, message)


def rollback(root: Path, artifact: str, stage: str, message: str | None = None) -> Version:
    """Put back what served `stage` before the present version first did."""
    with _alone(root, artifact):
        current = champion(root, artifact, stage)
        if current is None:
            raise MaestroError(f"nothing of '{artifact}' serves '{stage}': nothing to roll back")
        served = list(dict.fromkeys(_assignments(read_tags(root, artifact), stage)))
        position = served.index(current.version)
        if position == 0:
            raise MaestroError(
                f"{current.version} is the first that served '{stage}': promote another"
            )
        return _promote(root, artifact, stage, None, served[position - 1], "minor", message)


def _promote(
    root: Path,
    artifact: str,
    stage: str,
    commit: str | None,
    version: str | None,
    bump: Bump,
    message: str | None,
) -> Version:
    if version is None:
        if commit is None:
            require_clean(root)
        commit = commit_of(root, commit or "HEAD")
        content(root, artifact, commit)
        version = _register(root, artifact, commit, bump, message)
    chosen = find(root, artifact, version)
    content(root, artifact, chosen.commit)
    _serve(root, chosen, stage, message)
    return find(root, artifact, version)


def _register(root: Path, artifact: str, commit: str, bump: Bump, message: str | None) -> str:
    """Return the version of `commit`; register one, a `bump` above the last, when it has none."""
    known = versions(root, artifact)
    for each in known:
        if each.commit == commit:
            return each.version
    version = _raised(known[0].version, bump) if known else FIRST
    text = message or f"Registering artifact {artifact} version {version}"
    git(
        root,
        "tag",
        "--annotate",
        "--cleanup=verbatim",
        "--message",
        text,
        f"{artifact}@{version}",
        commit,
    )
    return version


def _raised(version: str, bump: Bump) -> str:
    major, minor, patch = release_of(version)[:3]
    raised = {
        "major": (major + 1, 0, 0),
        "minor": (major, minor + 1, 0),
        "patch": (major, minor, patch + 1),
    }[bump]
    return "v" + ".".join(map(str, raised))


def _serve(root: Path, chosen: Version, stage: str, message: str | None) -> None:
    """Assign, then withdraw all others: readers differ on which of several they would take."""
    _wait_for_next_second(root, chosen.artifact)
    if stage not in chosen.stages:
        _tag(root, chosen, stage, message or f"Assigning stage {stage} to {chosen.name}")
    for other in versions(root, chosen.artifact):
        if stage in other.stages and other.commit != chosen.commit:
            _tag(root, other, f"{stage}!", f"Unassigning stage {stage} from {other.name}")


def _tag(root: Path, version: Version, stage: str, message: str) -> None:
    count = next_count(read_tags(root, version.artifact))
    name = f"{version.artifact}#{stage}#{count}"
    git(root, "tag", "--annotate", "--cleanup=verbatim", "--message", message, name, version.commit)


def _wait_for_next_second(root: Path, artifact: str) -> None:
    """Tags carry whole seconds, and GTO takes the latest for true: two within one are a riddle."""
    assigned = [tag.created.timestamp() for tag in read_tags(root, artifact) if tag.stage]
    while assigned and time.time() < max(assigned) + 1:
        time.sleep(0.05)


@contextmanager
def _alone(root: Path, artifact: str) -> Iterator[None]:
    """Keep other promotions out, those from other worktrees of the repository included."""
    folder = Path(git(root, "rev-parse", "--git-common-dir").strip())
    with (root / folder / "maestro-registry.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MaestroError(
                f"another promotion or rollback of '{artifact}' is under way: look at "
                "'python -m pipelines.registry list' and try again"
            ) from None
        yield


if __name__ == "__main__":
    from pipelines.harness import leave_with
    from pipelines.registry_cli import main

    leave_with(main)
