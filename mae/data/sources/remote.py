"""A folder behind a URL as a tree: s3://, gs://, memory://, any protocol that fsspec knows."""

import os
from functools import lru_cache
from typing import Any

from mae.data.records import Location
from mae.data.sources.files import RemoteFile, file_system, limit_for, stamp_of
from mae.data.sources.names import inside, is_hidden
from mae.data.sources.trees import Entry, Tree, nowhere
from mae.errors import DataError


class RemoteFolder(Tree):
    """Each folder is listed by one request; its files' lengths and stamps come with it."""

    def __init__(self, url: str, limit: int) -> None:
        self._files, self._root = file_system(url)
        self._root = self._root.rstrip("/")
        self._limit = limit
        self.title = url
        # A process that lives on must see what has come since.
        self._files.invalidate_cache()
        self._known = lru_cache(maxsize=4)(self.files)

    def exists(self) -> bool:
        try:
            return bool(self._files.isdir(self._root))
        except Exception as error:  # every store has exceptions of its own
            raise DataError(
                f"{self.title} cannot be reached: {type(error).__name__}: {error}"
            ) from None

    def entries(self, folder: str) -> list[Entry]:
        path = self._path(folder)
        try:
            found = self._files.ls(path, detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise DataError(
                f"{self.title}/{folder} cannot be listed: {type(error).__name__}: {error}"
            ) from None
        entries = [self._entry(path, info) for info in found]
        return sorted((entry for entry in entries if entry), key=lambda entry: entry.sort_key)

    def find(self, name: str) -> Location:
        known = inside(name)
        if known is None:
            return nowhere(self.title, name)
        folder, _, last = known.rpartition("/")
        return self._known(folder).get(last) or nowhere(self.title, name)

    def identity(self, folder: str) -> str:
        path = self._path(folder)
        return os.path.realpath(path) if "file" in self._files.protocol else path

    def _path(self, folder: str) -> str:
        return f"{self._root}/{folder}" if folder else self._root or "/"

    def _entry(self, folder: str, info: dict[str, Any]) -> Entry | None:
        path = info["name"].rstrip("/")
        name = path.rpartition("/")[2]
        # Buckets show a folder's own empty marker among what is in it.
        if not name or is_hidden(name) or path.strip("/") == folder.strip("/"):
            return None
        if info["type"] == "directory":
            return Entry(name, None)
        url = self._files.unstrip_protocol(path)
        return Entry(
            name, RemoteFile(url, limit_for(name, self._limit), info.get("size"), stamp_of(info))
        )
