"""What the sources look like from outside: python -m pipelines.sources_watch, in a project.

Names, lengths and times of all files at the paths that params.yaml names, and nothing of what is
in them: quick enough to ask every night whether sharding is worth it. Where a look tells nothing
(a dataset of a hub), only sharding can say whether there is something new.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mae.errors import DataError
from mae.files import fingerprint, write_json
from mae.params import Params, read_params
from pipelines.harness import leave_with


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.sources_watch", description="A fingerprint of the sources."
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parser.parse_args()
    write_json(given.out, {"sources": look(read_params(given.params))})


def look(params: Params) -> str | None:
    """Return what changes when the sources do, or the parameters that say what is taken of them;
    None where a look does not tell. Raises DataError for a source that is not there."""
    seen: dict[str, Any] = {"seed": params.seed, "data": params.data.model_dump(mode="json")}
    for name, source in (("images", params.data.images), ("scenes", params.data.scenes)):
        if source.path is None:
            continue
        if source.source == "huggingface" and not Path(source.path).exists():
            return None
        seen[name] = sorted(_listing(source.path))
        if not seen[name]:
            raise DataError(f"data.{name}.path: there is nothing at {source.path}")
    removals = Path("data/removals.txt")
    seen["removals"] = removals.read_text("utf-8") if removals.is_file() else ""
    return fingerprint(seen)


def _listing(path: str) -> Iterator[tuple[str, str]]:
    """Yield (name, what changes with its bytes) of every file that `path` stands for."""
    if "://" not in path and Path(path).exists():
        yield from _local(path)
        return
    # Slow to import, and not needed for what most people have.
    from mae.data.sources.files import file_system, is_url, stamp_of
    from mae.data.sources.patterns import expand, is_pattern

    if is_pattern(path):
        for one in expand(path):
            yield from _listing(one)
    elif is_url(path):
        try:
            files, place = file_system(path)
            files.invalidate_cache()
            for name, info in files.find(place, detail=True).items():
                yield name, stamp_of(info)
        except Exception as error:  # every store has exceptions of its own
            raise DataError(
                f"{path} cannot be listed ({type(error).__name__}: {error}): is it within reach?"
            ) from None


def _local(path: str) -> Iterator[tuple[str, str]]:
    if Path(path).is_file():
        yield path, _stamp(Path(path).stat())
    folders = [path]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        yield os.fsencode(entry.path).hex(), _stamp(_status(entry))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise DataError(f"{folder} cannot be listed ({error.strerror})") from None


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError:  # a link to nowhere: itself is what there is
        return entry.stat(follow_symlinks=False)


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


if __name__ == "__main__":
    leave_with(main)
