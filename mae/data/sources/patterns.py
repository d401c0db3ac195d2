"""Several paths in one text: {000..009}, {a,b}, *.tar, and one::two."""

import glob
import re
from pathlib import Path

from mae.data.sources.files import file_system, is_url

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILD = re.compile(r"[*?\[]")
_BETWEEN = "::"


def is_pattern(path: str) -> bool:
    """Return whether the path stands for others. A file that is there is meant as it is."""
    marked = _WILD.search(path) or _BRACES.search(path) or _BETWEEN in path
    return bool(marked) and (is_url(path) or not Path(path).exists())


def expand(path: str) -> list[str]:
    """Return the paths that a pattern stands for, each once, sorted.

    A wildcard stands for what is there; braces for all they say, there or not, so that one that
    is missing is noticed.
    """
    found: set[str] = set()
    for part in path.split(_BETWEEN):
        for name in _without_braces(part.strip()):
            found.update(_matches(name) if _WILD.search(name) else [name])
    return sorted(found)


def _without_braces(path: str) -> list[str]:
    braces = _BRACES.search(path)
    if braces is None:
        return [path]
    before, after = path[: braces.start()], path[braces.end() :]
    choices = _choices(braces[1])
    return [name for choice in choices for name in _without_braces(before + choice + after)]


def _choices(inner: str) -> list[str]:
    ends = _RANGE.fullmatch(inner)
    if ends is None:
        return inner.split(",")
    first, last = ends.groups()
    digits = len(first) if first.startswith("0") else 0
    return [f"{number:0{digits}d}" for number in range(int(first), int(last) + 1)]


def _matches(path: str) -> list[str]:
    if not is_url(path):
        return glob.glob(path, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
    files, below = file_system(path)
    return [files.unstrip_protocol(name) for name in files.glob(below)]
