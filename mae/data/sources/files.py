"""Files, local or behind a URL: bytes, ranges of bytes, and what changes when they do."""

import os
import stat
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Location
from mae.data.sources.names import has_image_suffix, printable
from mae.errors import DataError

# No image of data.max_pixels needs more bytes than four channels of 16 bits and a header.
_BYTES_PER_PIXEL = 8
_HEADER_BYTES = 1 << 20

# What lies beside images: annotations, lists of names.
_OTHER_BYTES = 4 << 30

_OPEN_FILES = 64
# What stores call the thing that changes with an object's bytes, the surest first.
_STAMP_KEYS = (
    *("ETag", "etag", "md5Hash", "content_md5", "crc32c", "generation", "sha256", "mtime"),
    *("LastModified", "last_modified", "updated", "created"),
)


def byte_limit(max_pixels: int) -> int:
    """Return the most bytes that an image of max_pixels can need."""
    return max_pixels * _BYTES_PER_PIXEL + _HEADER_BYTES


def limit_for(name: str, limit: int) -> int:
    """Return the most bytes to read of a file: `limit` for an image, more for what describes it."""
    return limit if has_image_suffix(name) else _OTHER_BYTES


def check_length(length: int, limit: int) -> None:
    if length > limit:
        raise ImageFault(
            reasons.TOO_LARGE,
            f"{length} bytes, more than the {limit} that an image of data.max_pixels can need"
            if limit != _OTHER_BYTES
            else f"{length} bytes, more than {limit}",
        )


@dataclass(frozen=True, slots=True)
class Unusable:
    """A place without bytes that could be used, known when it was listed."""

    reason: str
    detail: str

    def read(self) -> bytes:
        raise ImageFault(self.reason, self.detail)

    def stamp(self) -> str:
        raise ImageFault(self.reason, self.detail)


class ByteFile(Location, Hashable, Protocol):
    """A file of which parts can be read, from several threads at once."""

    @property
    def name(self) -> str: ...

    def read_range(self, start: int, length: int) -> bytes:
        """Return the bytes from `start`, fewer where the file ends. Raises ImageFault."""

    def open(self) -> BinaryIO:
        """Return the file opened to be read and sought. Raises OSError."""

    def length(self) -> int:
        """Return the number of bytes in all. Raises ImageFault."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of this machine. `limit`: the most bytes that `read` returns."""

    path: str
    limit: int

    @property
    def name(self) -> str:
        return self.path

    def read(self) -> bytes:
        check_length(self._status().st_size, self.limit)
        try:
            with Path(self.path).open("rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise ImageFault(reasons.UNREADABLE, str(error.strerror)) from None

    def read_range(self, start: int, length: int) -> bytes:
        status = self._status()
        # A file that was replaced has another inode or time: never read the old one's bytes.
        key = os.getpid(), self.path, status.st_ino, status.st_mtime_ns
        try:
            return _opened(*key).read_at(start, length)
        except OSError as error:
            raise ImageFault(reasons.UNREADABLE, str(error.strerror)) from None

    def open(self) -> BinaryIO:
        return Path(self.path).open("rb")

    def length(self) -> int:
        return self._status().st_size

    def stamp(self) -> str:
        status = self._status()
        return f"{status.st_size}-{status.st_mtime_ns}"

    def _status(self) -> os.stat_result:
        try:
            status = os.stat(self.path)  # noqa: PTH116 (a Path for each of a million is slow)
        except FileNotFoundError:
            raise _missing(Path(self.path)) from None
        except (OSError, ValueError) as error:
            detail = getattr(error, "strerror", None) or str(error)
            raise ImageFault(reasons.UNREADABLE, detail) from None
        if not stat.S_ISREG(status.st_mode):
            raise ImageFault(reasons.UNREADABLE, "a folder or device, not a file")
        return status


def _missing(path: Path) -> ImageFault:
    if path.is_symlink():
        target = printable(str(path.readlink()))
        return ImageFault(reasons.DANGLING_LINK, f"a link to {target}, which is not there")
    return ImageFault(reasons.MISSING, f"{printable(str(path))} is not there")


class _Opened:
    """An open file. It closes when nobody holds it: no reader loses it to the cache's limit."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read_at(self, start: int, length: int) -> bytes:
        """Return the bytes from `start`, fewer where the file ends. A call holds the file open."""
        content = os.pread(self._descriptor, length, start)
        while len(content) < length:  # one call reads 2 GiB at most
            more = os.pread(self._descriptor, length - len(content), start + len(content))
            if not more:
                break
            content += more
        return content


@lru_cache(maxsize=_OPEN_FILES)
def _opened(process: int, path: str, inode: int, modified: int) -> _Opened:
    return _Opened(path)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL, through fsspec. size and mark are what its listing said, if any."""

    url: str
    limit: int
    size: int | None = field(default=None, compare=False)
    mark: str | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return self.url

    def read(self) -> bytes:
        check_length(self.length(), self.limit)
        return self._fetch(None, None)

    def read_range(self, start: int, length: int) -> bytes:
        return self._fetch(start, start + length) if length else b""

    def open(self) -> BinaryIO:
        files, path = file_system(self.url)
        return files.open(path, "rb")

    def length(self) -> int:
        size = self._info().get("size") if self.size is None else self.size
        if size is None:
            raise ImageFault(reasons.UNREADABLE, f"{self.url}: its length is not known")
        return int(size)

    def stamp(self) -> str:
        return stamp_of(self._info()) if self.mark is None else self.mark

    def _info(self) -> dict[str, Any]:
        try:
            files, path = file_system(self.url)
            return files.info(path)
        except Exception as error:  # every store has exceptions of its own
            raise _remote_fault(self.url, error) from None

    def _fetch(self, start: int | None, end: int | None) -> bytes:
        try:
            files, path = file_system(self.url)
            return files.cat_file(path, start=start, end=end)
        except Exception as error:
            raise _remote_fault(self.url, error) from None


def stamp_of(info: dict[str, Any]) -> str:
    """Return a stamp from what a store says of an object."""
    mark = next((info[key] for key in _STAMP_KEYS if info.get(key) is not None), "")
    return f"{info.get('size')}-{mark}"


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for the URL and the path in it.

    Raises DataError where the protocol is unknown or its package is not installed. Credentials
    come from where the package looks for them, such as the environment.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise DataError(f"{url} needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise DataError(f"{url} cannot be opened: {error}") from None


def is_url(path: str) -> bool:
    return "://" in path


def _remote_fault(url: str, error: Exception) -> ImageFault:
    if isinstance(error, DataError):
        return ImageFault(reasons.UNREADABLE, str(error))
    if isinstance(error, FileNotFoundError):
        return ImageFault(reasons.MISSING, f"{url} is not there")
    return ImageFault(reasons.UNREADABLE, f"{url}: {type(error).__name__}: {error}")
