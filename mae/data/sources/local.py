"""A folder of this machine as a tree."""

import os
from pathlib import Path

from mae.data.records import Location
from mae.data.sources.files import LocalFile, limit_for
from mae.data.sources.names import has_image_suffix, inside, is_hidden
from mae.data.sources.trees import Entry, Tree, unsafe
from mae.errors import DataError


class LocalFolder(Tree):
    """Links are followed. Nothing is asked of a file itself: a million are listed in seconds."""

    def __init__(self, path: Path, limit: int) -> None:
        self._root = os.fspath(path)
        self._limit = limit
        self.title = str(path)

    def entries(self, folder: str) -> list[Entry]:
        path = self._path(folder)
        try:
            with os.scandir(path) as found:
                entries = [self._entry(path, one) for one in found if not is_hidden(one.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise DataError(f"the folder {path} cannot be listed ({error.strerror})") from None
        return sorted(entries, key=lambda entry: entry.sort_key)

    def find(self, name: str) -> Location:
        known = inside(name)
        return unsafe(name) if known is None else self._file(self._path(known))

    def identity(self, folder: str) -> str:
        return os.path.realpath(self._path(folder))

    def _path(self, name: str) -> str:
        return os.path.join(self._root, name) if name else self._root  # noqa: PTH118

    def _entry(self, path: str, found: os.DirEntry[str]) -> Entry:
        # A folder that is named like an image is one that cannot be read, not a class.
        if found.is_dir() and not has_image_suffix(found.name):
            return Entry(found.name, None)
        return Entry(found.name, self._file(found.path))

    def _file(self, path: str) -> LocalFile:
        return LocalFile(path, limit_for(path, self._limit))
