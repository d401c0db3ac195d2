"""The files of a version, brought from DVC's cache or remote into a folder of their own."""

import errno
import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mae.errors import MaestroError
from mae.files import replacing_folder, write_json
from pipelines.registry import Content, Version, contents

if TYPE_CHECKING:
    from dvc.repo import Repo

log = logging.getLogger(__name__)

MODELS = Path("runs/models")
VERSION = "version.json"


def fetch(root: Path, version: Version, into: Path | None = None) -> Path:
    """Return the folder with every artifact of the version's commit: `pretrain/`, `export/`, ...

    It is `runs/models/encoder@v0.2.0` where `into` names no other, appears whole, and what it
    holds is checked by DVC's hashes each time it is asked for. The files are copies that can only
    be read: writing to one would reach neither DVC's cache nor a checkout. An artifact that the
    commit's dvc.lock does not know is left out.

    Raises MaestroError where files are neither in the cache nor had from the remote, where those
    are damaged, the disk is full, or `into` holds something else.
    """
    folder = into or root / MODELS / version.name
    held = contents(root, version.commit)
    if version.artifact not in held:
        raise MaestroError(f"the commit of {version.name} holds no '{version.artifact}'")
    parts = _parts(version, held)
    with _one_at_a_time(root / MODELS):
        if folder.exists() and not (folder / VERSION).is_file():
            raise MaestroError(f"{folder} is there and holds no fetched version: name another")
        if _is_whole(folder, version, parts):
            return folder
        try:
            _bring(root, folder, version, parts)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = "free some space" if full else "see to it"
            raise MaestroError(
                f"{version.name} could not be brought to {folder} ({error}): {advice} and run again"
            ) from None
    log.info("%s is in %s", version.name, folder)
    return folder


def _parts(version: Version, held: dict[str, Content]) -> dict[str, Content]:
    """Return what is to lie in the folder, by its name there."""
    parts: dict[str, Content] = {}
    for one in held.values():
        name = Path(one.path).name
        if parts.setdefault(name, one).path != one.path:
            raise MaestroError(
                f"two artifacts of {version.name} would both be called '{name}': "
                f"{parts[name].path} and {one.path}"
            )
    return parts


def _bring(root: Path, folder: Path, version: Version, parts: dict[str, Content]) -> None:
    with _repository(root) as repo, replacing_folder(folder) as new:
        _have(repo, version, [one.hash for one in parts.values()])
        for name, one in parts.items():
            files = _files(repo, new / name, one.hash)
            _have(repo, version, files.values())
            for path, md5 in files.items():
                _copy(_object(repo, md5), path)
        write_json(new / VERSION, _about(version, parts))
        if not _is_whole(new, version, parts):
            raise MaestroError(
                f"what was copied of {version.name} to {folder.parent} is not what it should be: "
                "check the disk"
            )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o444)


def _about(version: Version, parts: dict[str, Content]) -> dict[str, object]:
    return {
        "artifact": version.artifact,
        "version": version.version,
        "commit": version.commit,
        "md5": {name: one.hash for name, one in parts.items()},
    }


def _is_whole(folder: Path, version: Version, parts: dict[str, Content]) -> bool:
    """Tell whether the folder holds just these files, every byte as it was hashed."""
    try:
        about = json.loads((folder / VERSION).read_text(encoding="utf-8"))
        return about == _about(version, parts) and all(
            dvc_hash(folder / name) == one.hash for name, one in parts.items()
        )
    except (OSError, ValueError):
        return False


def dvc_hash(path: Path) -> str:
    """Return DVC's hash of a file, or of a folder: that of its list of hashes and paths."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    listing = [
        {"md5": dvc_hash(file), "relpath": file.relative_to(path).as_posix()}
        for file in path.rglob("*")
        if file.is_file()
    ]
    listing.sort(key=lambda entry: entry["relpath"])
    content = json.dumps(listing, sort_keys=True).encode()
    return hashlib.md5(content, usedforsecurity=False).hexdigest() + ".dir"


# --- DVC's cache and remote -------------------------------------------------------------------


@contextmanager
def _repository(root: Path) -> Iterator["Repo"]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(Repo.find_root(str(root)))
    except DvcException as error:
        raise MaestroError(f"DVC cannot work in {root.resolve()}: {error}") from None
    with repo:
        yield repo


def _object(repo: "Repo", md5: str) -> Path:
    return Path(repo.cache.local.oid_to_path(md5))


def _files(repo: "Repo", target: Path, md5: str) -> dict[Path, str]:
    """Return the hash of each file that an artifact puts at or below `target`."""
    if not md5.endswith(".dir"):
        return {target: md5}
    target.mkdir()
    entries = json.loads(_object(repo, md5).read_text(encoding="utf-8"))
    return {target / entry["relpath"]: entry["md5"] for entry in entries}


def _have(repo: "Repo", version: Version, hashes: Iterable[str]) -> None:
    """Have objects in DVC's cache, sound: what is missing or damaged comes from the remote.

    DVC itself takes objects in the cache that are read-only for sound, whatever they hold.
    """
    from dvc_data.hashfile.hash_info import HashInfo

    wanted = [md5 for md5 in dict.fromkeys(hashes) if not _is_sound(repo, md5)]
    if not wanted:
        return
    damaged = [md5 for md5 in wanted if _object(repo, md5).exists()]
    state = f"{len(damaged)} are damaged" if damaged else "none of them is damaged"
    lost = f"{version.name} lacks {len(wanted)} file(s) in DVC's cache ({state})"
    remote = repo.config["core"].get("remote")
    if not remote:
        raise MaestroError(
            f"{lost}, and the project has no remote to bring them from: copy {_object(repo, '')} "
            "from where the version was made, or name a remote with 'dvc remote add --default'"
        )
    for md5 in damaged:
        log.warning("%s in DVC's cache is damaged: brought again from '%s'", md5, remote)
        _object(repo, md5).unlink()
    try:
        repo.cloud.pull([HashInfo("md5", md5) for md5 in wanted])
    except Exception as error:  # what a remote raises depends on its kind
        raise MaestroError(f"{lost}, and the remote '{remote}' fails: {error}") from error
    if still := [md5 for md5 in wanted if not _is_sound(repo, md5)]:
        broken = any(_object(repo, md5).exists() for md5 in still)
        why = "has them damaged, too" if broken else "does not give them"
        raise MaestroError(
            f"{lost}, and the remote '{remote}' {why} ({still[0]}): see that it can be reached, "
            "and run 'dvc push --all-tags' where the version was made"
        )


def _is_sound(repo: "Repo", md5: str) -> bool:
    path = _object(repo, md5)
    return path.is_file() and dvc_hash(path) == md5.removesuffix(".dir")


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
