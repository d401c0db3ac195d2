"""Compressed tar archives, unpacked once to plain ones, which can be read at random."""

import bz2
import gzip
import hashlib
import logging
import lzma
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from mae.data import reasons
from mae.data.sources.files import ByteFile, LocalFile, Unusable
from mae.errors import DataError
from mae.files import replacing_file

log = logging.getLogger(__name__)

_CHUNK = 1 << 18
_CHECK_EVERY = 1 << 28  # bytes written between two looks at the disk
_LEAVE_FREE = 1 << 30  # bytes of the disk that unpacking never takes
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}


@dataclass(frozen=True)
class Unpacked:
    """A plain tar file, and what is wrong with the compressed one where it was cut or damaged."""

    file: LocalFile
    fault: Unusable | None


def compression_of(archive: ByteFile) -> str | None:
    """Return how the archive is compressed by its first bytes, whatever its name says."""
    start = archive.read_range(0, 6)
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)


def unpack(archive: ByteFile, kind: str, title: str, spool: Path | None) -> Unpacked:
    """Return the plain tar of a compressed one, in `spool` or a folder that goes with the process.

    One that lies in `spool` from before is used again. Raises DataError when the disk is too full
    or nothing can be unpacked.
    """
    folder = _temporary_folder() if spool is None else spool
    name = hashlib.sha256(f"{archive.name} {archive.stamp()}".encode(errors="replace")).hexdigest()
    whole, cut = folder / f"{name[:20]}.tar", folder / f"{name[:20]}-cut.tar"
    if whole.exists():
        log.info("%s: unpacked before, in %s", title, whole)
        return Unpacked(_plain(whole), None)
    log.info(
        "%s is compressed by %s, which cannot be read at random: unpacking it once to %s",
        *(title, kind, folder),
    )
    fault: Unusable | None = None
    try:
        with replacing_file(whole) as temporary:
            fault = _copy(archive, kind, title, temporary)
            if fault:
                temporary.rename(cut)
                raise _CutShort
    except _CutShort:
        return Unpacked(_plain(cut), fault)
    return Unpacked(_plain(whole), None)


class _CutShort(Exception):
    pass


def _plain(path: Path) -> LocalFile:
    return LocalFile(str(path), 0)


@cache
def _temporary_folder() -> Path:
    holder = tempfile.TemporaryDirectory(prefix="maestro-spool-")
    _HOLDERS.append(holder)  # removed when the process that made it ends
    return Path(holder.name)


_HOLDERS: list[tempfile.TemporaryDirectory] = []


def _copy(archive: ByteFile, kind: str, title: str, target: Path) -> Unusable | None:
    """Unpack as much as there is; return why it is not all."""
    written = 0
    with target.open("wb") as plain:
        try:
            with archive.open() as packed, _reader(kind, packed) as stream:
                # What is there: `read` would lose, with a stream that ends, all it had gathered.
                read = getattr(stream, "read1", stream.read)
                checked = -1
                while chunk := read(_CHUNK):
                    if written // _CHECK_EVERY > checked:
                        checked = written // _CHECK_EVERY
                        _check_room(target.parent, title)
                    plain.write(chunk)
                    written += len(chunk)
        except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            _refuse_full_disk(error, title, target.parent)
            if not written:
                raise DataError(f"{title} cannot be unpacked ({error})") from None
            cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
            reason = reasons.TRUNCATED if cut else reasons.DAMAGED
            return Unusable(reason, f"unpacking ended after {written} bytes: {error}")
    return None


def _reader(kind: str, packed: BinaryIO) -> BinaryIO:
    if kind == "zstandard":
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, "r"), "zstd")
    module = {"gzip": gzip, "bzip2": bz2, "xz": lzma}[kind]
    return module.open(packed, "rb")


def _check_room(folder: Path, title: str) -> None:
    if shutil.disk_usage(folder).free < _LEAVE_FREE:
        raise DataError(_no_room(title, folder))


def _refuse_full_disk(error: Exception, title: str, folder: Path) -> None:
    if isinstance(error, OSError) and error.errno == 28:  # ENOSPC
        raise DataError(_no_room(title, folder)) from None


def _no_room(title: str, folder: Path) -> str:
    return (
        f"{title} cannot be unpacked, {folder} is full: make room, set TMPDIR to a larger disk, or "
        "unpack the archive yourself"
    )
