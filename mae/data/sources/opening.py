"""A path, URL or pattern -> the tree that it names."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mae.data.reasons import ImageFault
from mae.data.sources.files import ByteFile, LocalFile, RemoteFile, is_url
from mae.data.sources.local import LocalFolder
from mae.data.sources.members import Member, MemberTree
from mae.data.sources.names import TABLE_SUFFIXES, ZIP_SUFFIXES, archive_stem, suffix
from mae.data.sources.patterns import expand, is_pattern
from mae.data.sources.remote import RemoteFolder
from mae.data.sources.roles import SPLIT_NAMES
from mae.data.sources.spool import compression_of, unpack
from mae.data.sources.tars import tar_members
from mae.data.sources.trees import Mounted, Subtree, Tree
from mae.data.sources.zips import zip_members
from mae.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opening:
    """How a source is opened. limit: bytes of the longest image. advice: what to do about a path
    that is wrong, for messages. spool: where compressed archives are unpacked, None for a
    temporary folder."""

    limit: int
    advice: str
    spool: Path | None = None


def open_tree(path: str, how: Opening) -> Tree:
    """Return the tree at `path`: a folder, an archive, a URL of either, or a pattern of several.

    A folder with nothing but archives holds each as a folder named by its stem. Raises DataError
    where there is nothing.
    """
    if is_pattern(path):
        found = expand(path)
        if not found:
            raise DataError(f"nothing fits {path}: {how.advice}")
        return _mounted(path, found, how) if len(found) > 1 else open_tree(found[0], how)
    if archive_stem(path) and not Path(path).is_dir():
        return _without_wrapper(_archive_tree(path, how))
    folder = open_files(path, how)
    archives = _nothing_but_archives(folder)
    if not archives:
        return folder
    return _mounted(path, [f"{path.rstrip('/')}/{name}" for name in archives], how)


def byte_file(path: str, how: Opening) -> ByteFile:
    return RemoteFile(path, how.limit) if is_url(path) else LocalFile(path, how.limit)


def archive_members(
    path: str, how: Opening, inline: Callable[[str], bool] = lambda name: False
) -> Iterator[Member]:
    """Yield the members of an archive; `inline` as in tar_members. Raises DataError where it is
    missing, none, or nothing of it is whole."""
    archive = byte_file(path, how)
    try:
        if path.lower().endswith(ZIP_SUFFIXES):
            archive.length()
            yield from zip_members(archive, path, how.limit)
            return
        kind = compression_of(archive)
        if kind is None:
            yield from tar_members(archive, path, how.limit, inline=inline)
            return
        plain = unpack(archive, kind, path, how.spool)
        mark = archive.stamp()
    except ImageFault as fault:
        raise DataError(f"{path} cannot be read ({fault.detail}): {how.advice}") from None
    for member in tar_members(plain.file, path, how.limit, mark, inline):
        # Of a stream that was cut, the plain archive's end is only the consequence.
        if member.name is not None or plain.fault is None:
            yield member
    if plain.fault is not None:
        log.warning("%s: %s", path, plain.fault.detail)
        yield Member(None, plain.fault)


def _archive_tree(path: str, how: Opening) -> MemberTree:
    return MemberTree(path, archive_members(path, how))


def _without_wrapper(tree: Tree) -> Tree:
    """Go down while an archive holds one folder and no image: people pack the folder itself."""
    while (name := _only_folder(tree)) and name.lower() not in SPLIT_NAMES:
        tree = Subtree(tree, name)
    return tree


def _only_folder(tree: Tree) -> str | None:
    folders = tree.folders()
    return folders[0] if len(folders) == 1 and not tree.loose_images() else None


def _mounted(title: str, paths: list[str], how: Opening) -> Mounted:
    trees: dict[str, Tree] = {}
    for path in paths:
        name = archive_stem(path) or PurePosixPath(path).name
        if name in trees:
            raise DataError(f"{title} has two of the name {name}, {path} and another: rename one")
        trees[name] = _mount(path, name, how)
    return Mounted(title, trees)


def _mount(path: str, name: str, how: Opening) -> Tree:
    """train.zip with nothing but train/ in it is that folder; one with cat/ alone is not."""
    if archive_stem(path) is None:
        return open_tree(path, how)
    tree = _archive_tree(path, how)
    return Subtree(tree, name) if _only_folder(tree) == name else tree


def open_files(path: str, how: Opening) -> Tree:
    """Return the folder at a path or URL as it is. Raises DataError where there is none."""
    if is_url(path):
        remote = RemoteFolder(path, how.limit)
        if not remote.exists():
            raise DataError(f"{path} does not exist, or is no folder: {how.advice}")
        return remote
    local = Path(path)
    if suffix(path) in TABLE_SUFFIXES and local.is_file():
        raise DataError(f"{path} is a table: set the source to `table`, or {how.advice}")
    if local.is_file():
        raise DataError(f"{path} is a file, neither a folder nor a zip or tar: {how.advice}")
    if not local.is_dir():
        raise DataError(f"the folder {local.resolve()} does not exist: {how.advice}")
    return LocalFolder(local, how.limit)


def _nothing_but_archives(tree: Tree) -> list[str]:
    """Return the archives in the root where it holds no folder and no image besides them."""
    archives = []
    for entry in tree.entries(""):
        if archive_stem(entry.name) and not entry.is_folder:
            archives.append(entry.name)
        elif entry.is_folder or tree.loose_images(""):
            return []
    return archives
