"""What `python -m pipelines.registry` says and does."""

import argparse
from pathlib import Path
from typing import get_args

from pipelines.registry import (
    Bump,
    Version,
    content,
    contents,
    named,
    promote,
    rollback,
    versions,
)
from pipelines.repository import metrics_at


def main() -> None:
    given = _parser().parse_args()
    if given.command == "list":
        print(_table(versions(given.root, given.artifact)))
    elif given.command == "show":
        print(_details(given.root, named(given.root, given.name)))
    elif given.command == "fetch":
        from pipelines.fetching import fetch

        print(fetch(given.root, named(given.root, given.name), given.into))
    elif given.command == "promote":
        chosen = promote(
            given.root,
            given.artifact,
            given.stage,
            commit=given.commit,
            version=given.version,
            bump=given.bump,
            message=given.message,
        )
        print(_now_serves(chosen, given.stage))
    else:
        chosen = rollback(given.root, given.artifact, given.stage, given.message)
        print(_now_serves(chosen, given.stage))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.registry", description="Versions of an artifact, as git tags."
    )
    parser.add_argument("--root", type=Path, default=Path(), help="folder with dvc.yaml")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="all versions and what they serve")
    listing.add_argument("artifact", nargs="?", default="encoder")
    showing = commands.add_parser("show", help="one version: commit, files, metrics")
    fetching = commands.add_parser("fetch", help="bring the files of one version here")
    for naming in (showing, fetching):
        naming.add_argument("name", help="encoder@v0.1.0 or encoder#prod")
    fetching.add_argument("--into", type=Path, help="a folder; runs/models/NAME by default")
    promoting = commands.add_parser("promote", help="put HEAD, a commit or a version to use")
    chosen = promoting.add_mutually_exclusive_group()
    chosen.add_argument("--version", help="an existing version; without it HEAD becomes one")
    chosen.add_argument("--commit", help="becomes a version in place of HEAD")
    promoting.add_argument("--bump", choices=get_args(Bump), default="minor")
    for changing in (promoting, commands.add_parser("rollback", help="put the last one back")):
        changing.add_argument("artifact", nargs="?", default="encoder")
        changing.add_argument("--stage", default="prod")
        changing.add_argument("--message", help="kept in the tag")
    return parser


def _table(found: list[Version]) -> str:
    if not found:
        return "no versions yet: 'python -m pipelines.registry promote' makes the first"
    return "\n".join(
        f"{each.version:<10} {each.commit[:7]}  {each.created:%Y-%m-%d %H:%M}  "
        f"{','.join(each.stages) or '-':<10} {each.message.partition(chr(10))[0]}"
        for each in found
    )


def _details(root: Path, version: Version) -> str:
    from pipelines.gate import flat_metrics

    content(root, version.artifact, version.commit)
    held = contents(root, version.commit)
    metrics = flat_metrics(metrics_at(root, version.commit))
    lines = [
        version.name,
        f"serves   {', '.join(version.stages) or 'nothing'}",
        f"commit   {version.commit}",
        f"made     {version.created:%Y-%m-%d %H:%M:%S %Z}",
        *(f"files    {one.path} (md5 {one.hash}), as '{name}'" for name, one in held.items()),
        f"message  {version.message}",
        *(f"{name:<40} {value:.6g}" for name, value in sorted(metrics.items())),
    ]
    return "\n".join(lines)


def _now_serves(version: Version, stage: str) -> str:
    return (
        f"{version.name} serves '{stage}'; to let others see it: git push --follow-tags && dvc push"
    )
