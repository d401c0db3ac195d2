"""Versions of an artifact and which of them is in use, kept as git tags in the way of GTO.

`encoder@v0.2.0` names a version, `encoder#prod#3` puts one to use, `encoder#prod!#4` takes one
out of it. So DVC reads them too: `dvc artifacts get URL encoder --stage prod`.

    python -m pipelines.registry list
    python -m pipelines.registry show encoder@v0.2.0
    python -m pipelines.registry promote encoder [--version v0.1.0]
    python -m pipelines.registry rollback encoder
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from mae.errors import MaestroError
from pipelines.gate import flat_metrics
from pipelines.harness import leave_with
from pipelines.repository import commit_of, git, metrics_at, require_clean, working_yaml, yaml_at

Bump = Literal["major", "minor", "patch"]


@dataclass(frozen=True)
class Version:
    """A registered version and the stages (such as 'prod') it now serves."""

    artifact: str
    version: str
    commit: str
    created: datetime
    message: str
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Content:
    """What a commit holds of an artifact: its path in the project and DVC's hash of it."""

    path: str
    hash: str


@contextmanager
def _readable_errors() -> Iterator[None]:
    from gto.exceptions import GTOException
    from scmrepo.exceptions import SCMError

    try:
        yield
    except (GTOException, SCMError) as error:
        raise MaestroError(f"the registry cannot do this: {error}") from None


def versions(root: Path, artifact: str) -> list[Version]:
    """Return the registered versions of `artifact`, newest first; [] when there is none."""
    from gto.api import show
    from gto.exceptions import ArtifactNotFound

    commit_of(root, "HEAD")
    with _readable_errors():
        try:
            found = show(str(root), artifact, registered_only=True, versions_per_stage=-1)
        except ArtifactNotFound:
            found = []
    return [
        Version(
            artifact=artifact,
            version=each["version"],
            commit=each["commit_hexsha"],
            created=each["created_at"],
            message=each["message"],
            stages=tuple(stage["stage"] for stage in each["stages"]),
        )
        for each in found
    ]


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
    serving = {each.version: each for each in versions(root, artifact) if stage in each.stages}
    for version in reversed(_assignments(root, artifact, stage)):
        if version in serving:
            return serving[version]
    return None


def content(root: Path, artifact: str, commit: str | None) -> Content:
    """Return what `commit`, or the working tree where it is None, holds of `artifact`.

    Raises MaestroError when dvc.yaml does not declare it or dvc.lock does not know it.
    """
    read = working_yaml if commit is None else partial(yaml_at, commit=commit)
    where = "the working tree" if commit is None else f"commit {commit[:7]}"
    declared = read(root, path="dvc.yaml").get("artifacts", {})
    if artifact not in declared:
        known = ", ".join(declared) or "none"
        raise MaestroError(
            f"dvc.yaml of {where} declares no artifact '{artifact}' under 'artifacts:' "
            f"(declared: {known})"
        )
    path = declared[artifact]["path"]
    for stage in read(root, path="dvc.lock").get("stages", {}).values():
        for out in stage.get("outs", []):
            if out["path"] == path and "md5" in out:
                return Content(path, out["md5"])
    raise MaestroError(f"dvc.lock of {where} has no '{path}': run the pipeline and commit dvc.lock")


def promote(
    root: Path,
    artifact: str,
    stage: str,
    *,
    version: str | None = None,
    bump: Bump = "minor",
    message: str | None = None,
) -> Version:
    """Put a version to use in `stage`, alone; without `version`, what HEAD holds becomes one.

    Raises MaestroError when HEAD is not what lies in the working tree, or holds no artifact.
    """
    if version is None:
        require_clean(root)
        version = _register_head(root, artifact, bump, message)
    chosen = find(root, artifact, version)
    content(root, artifact, chosen.commit)
    _serve(root, chosen, stage, message)
    return find(root, artifact, version)


def _register_head(root: Path, artifact: str, bump: Bump, message: str | None) -> str:
    """Return the version of HEAD; register one, a `bump` above the last, when it has none."""
    from gto.api import register

    head = commit_of(root, "HEAD")
    content(root, artifact, head)
    known = versions(root, artifact)
    for each in known:
        if each.commit == head:
            return each.version
    with _readable_errors():
        register(
            str(root),
            artifact,
            "HEAD",
            version=None if known else "v0.1.0",
            message=message,
            bump_major=bool(known) and bump == "major",
            bump_minor=bool(known) and bump == "minor",
            bump_patch=bool(known) and bump == "patch",
        )
    return next(each.version for each in versions(root, artifact) if each.commit == head)


def _serve(root: Path, chosen: Version, stage: str, message: str | None) -> None:
    """Assign, then withdraw all others: readers differ on which of several they would take."""
    from gto.api import assign, unassign

    _wait_for_next_second(root, chosen.artifact)
    with _readable_errors():
        if stage not in chosen.stages:
            assign(
                str(root),
                chosen.artifact,
                stage,
                version=chosen.version,
                message=message,
                force=True,
            )
        for other in versions(root, chosen.artifact):
            if stage in other.stages and other.version != chosen.version:
                unassign(str(root), chosen.artifact, version=other.version, stage=stage)


def _wait_for_next_second(root: Path, artifact: str) -> None:
    """Tags carry whole seconds, and GTO takes the latest for true: two within one are a riddle."""
    tags = git(root, "tag", "--list", f"{artifact}#*", "--format=%(creatordate:unix)").split()
    while tags and time.time() < max(map(int, tags)) + 1:
        time.sleep(0.05)


def rollback(root: Path, artifact: str, stage: str, message: str | None = None) -> Version:
    """Put back what served `stage` before the present version first did."""
    current = champion(root, artifact, stage)
    if current is None:
        raise MaestroError(f"nothing of '{artifact}' serves '{stage}': nothing to roll back")
    served = list(dict.fromkeys(_assignments(root, artifact, stage)))
    position = served.index(current.version)
    if position == 0:
        raise MaestroError(f"{current.version} is the first that served '{stage}': promote another")
    return promote(root, artifact, stage, version=served[position - 1], message=message)


def _assignments(root: Path, artifact: str, stage: str) -> list[str]:
    """Return the versions that were put to use in `stage`, in that order, repeats included."""
    by_commit = {each.commit: each.version for each in versions(root, artifact)}
    tags = git(root, "tag", "--list", f"{artifact}#{stage}#*").split()
    tags.sort(key=lambda tag: int(tag.rpartition("#")[2]))
    served = [by_commit.get(commit_of(root, tag)) for tag in tags]
    return [version for version in served if version]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.registry", description="Versions of an artifact, as git tags."
    )
    parser.add_argument("--root", type=Path, default=Path(), help="folder with dvc.yaml")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="all versions and what they serve")
    listing.add_argument("artifact", nargs="?", default="encoder")
    showing = commands.add_parser("show", help="one version: commit, files, metrics")
    showing.add_argument("name", help="encoder@v0.1.0 or encoder#prod")
    promoting = commands.add_parser("promote", help="put HEAD, or a version, to use")
    promoting.add_argument("--version", help="an existing version; without it HEAD becomes one")
    promoting.add_argument("--bump", choices=get_args(Bump), default="minor")
    for changing in (promoting, commands.add_parser("rollback", help="put the last one back")):
        changing.add_argument("artifact", nargs="?", default="encoder")
        changing.add_argument("--stage", default="prod")
        changing.add_argument("--message", help="kept in the tag")
    given = parser.parse_args()
    if given.command == "list":
        print(_table(versions(given.root, given.artifact)))
    elif given.command == "show":
        print(_details(given.root, _named(given.root, given.name)))
    elif given.command == "promote":
        _say(
            promote(
                given.root,
                given.artifact,
                given.stage,
                version=given.version,
                bump=given.bump,
                message=given.message,
            ),
            given.stage,
        )
    else:
        _say(rollback(given.root, given.artifact, given.stage, given.message), given.stage)


def _named(root: Path, name: str) -> Version:
    artifact, mark, rest = name.partition("@")
    if mark:
        return find(root, artifact, rest)
    artifact, mark, stage = name.partition("#")
    if not mark:
        raise MaestroError(f"'{name}' names no version: write {name}@v0.1.0 or {name}#prod")
    if serving := champion(root, artifact, stage):
        return serving
    raise MaestroError(f"no version of '{artifact}' serves '{stage}'")


def _table(found: list[Version]) -> str:
    if not found:
        return "no versions yet: 'python -m pipelines.registry promote' makes the first"
    return "\n".join(
        f"{each.version:<10} {each.commit[:7]}  {each.created:%Y-%m-%d %H:%M}  "
        f"{','.join(each.stages) or '-':<10} {each.message.splitlines()[0]}"
        for each in found
    )


def _details(root: Path, version: Version) -> str:
    held = content(root, version.artifact, version.commit)
    metrics = flat_metrics(metrics_at(root, version.commit))
    lines = [
        f"{version.artifact}@{version.version}",
        f"serves   {', '.join(version.stages) or 'nothing'}",
        f"commit   {version.commit}",
        f"made     {version.created:%Y-%m-%d %H:%M:%S %Z}",
        f"files    {held.path} (md5 {held.hash})",
        f"message  {version.message.strip()}",
        *(f"{name:<40} {value:.6g}" for name, value in sorted(metrics.items())),
    ]
    return "\n".join(lines)


def _say(version: Version, stage: str) -> None:
    print(
        f"{version.artifact}@{version.version} serves '{stage}'; to let others see it: "
        "git push --follow-tags && dvc push"
    )


if __name__ == "__main__":
    leave_with(main)
