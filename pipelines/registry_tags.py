"""The git tags that a registry is made of, read by one git command."""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipelines.repository import git

_TAG = re.compile(
    r"(?P<artifact>[A-Za-z0-9][A-Za-z0-9_/-]*)"
    r"(@(?P<version>v\d+\.\d+\.\d+(?:[-+][A-Za-z0-9.+-]+)?)|#(?P<stage>[A-Za-z0-9][A-Za-z0-9_/-]*))"
    r"(?P<cancels>!?)(#(?P<count>\d+))?"
)
_FIELDS = (
    "%(refname:strip=2)",
    "%(objecttype)",
    "%(*objectname)",
    "%(creatordate:iso-strict)",
    "%(contents)",
)


@dataclass(frozen=True)
class Tag:
    """One event: a version registered, or a stage assigned; `cancels`: taken back."""

    artifact: str
    version: str | None
    stage: str | None
    cancels: bool
    count: int
    commit: str
    created: datetime
    message: str


def read_tags(root: Path, artifact: str) -> list[Tag]:
    """Return the tags of `artifact`, in the order in which they were made.

    Lightweight tags do not count, nor do they for GTO: they say neither when nor by whom.
    """
    fields = git(root, "for-each-ref", "refs/tags", f"--format={'%00'.join(_FIELDS)}%00").split(
        "\0"
    )
    found = []
    for name, kind, commit, created, message in zip(*[iter(fields)] * len(_FIELDS), strict=False):
        match = _TAG.fullmatch(name.strip())
        if kind != "tag" or match is None or match["artifact"] != artifact:
            continue
        found.append(
            Tag(
                artifact=artifact,
                version=match["version"],
                stage=match["stage"],
                cancels=bool(match["cancels"]),
                count=int(match["count"] or 0),
                commit=commit,
                created=datetime.fromisoformat(created),
                message=message.strip(),
            )
        )
    return sorted(found, key=lambda tag: (tag.created, tag.count))


def next_count(tags: list[Tag]) -> int:
    """Return the number of the next assignment; an artifact counts all of its stages together."""
    return 1 + max((tag.count for tag in tags), default=0)


def release_of(version: str) -> tuple[int, int, int, bool, str]:
    """Return what versions are ordered by: numbers, and a pre-release before its release."""
    numbers, _, suffix = version.removeprefix("v").partition("-")
    major, minor, patch = (int(number) for number in numbers.partition("+")[0].split("."))
    return major, minor, patch, not suffix, suffix
