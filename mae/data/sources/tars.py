"""Members of a tar archive, read at random by their offsets."""

import logging
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Inline, Location
from mae.data.sources.files import ByteFile, Unusable, check_length, limit_for
from mae.data.sources.members import Member, not_a_file
from mae.errors import DataError

log = logging.getLogger(__name__)

_BLOCK = tarfile.BLOCKSIZE
_INLINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member's bytes in an archive that is not compressed. mark: the archive's own stamp, since
    a tar has no checksum of a member's bytes."""

    archive: ByteFile
    offset: int
    length: int
    mark: str

    def read(self) -> bytes:
        content = self.archive.read_range(self.offset, self.length)
        if len(content) < self.length:
            raise ImageFault(reasons.TRUNCATED, "the archive ends within this member")
        return content

    def stamp(self) -> str:
        return f"{self.offset}-{self.length}-{self.mark}"


def tar_members(
    archive: ByteFile,
    title: str,
    limit: int,
    mark: str | None = None,
    inline: Callable[[str], bool] = lambda name: False,
) -> Iterator[Member]:
    """Yield every member that is no folder, then what is wrong with the archive, if anything.

    mark: the stamp of what the archive was unpacked from. inline: the names whose bytes are taken
    along while the archive is read anyway. Raises DataError where it is no tar or nothing of it is
    whole.
    """
    mark = archive.stamp() if mark is None else mark
    length = archive.length()
    if not length:
        raise DataError(f"{title} is empty, not a tar archive: copy or download it again")
    try:
        with (
            archive.open() as file,
            tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as opened,
        ):
            end = 0
            while info := _next(opened, title):
                opened.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                end = info.offset_data + info.size
                if not info.isdir():
                    yield _member(archive, info, length, limit, mark, inline, opened)
            fault = _fault_at_end(file, opened.offset, end, length)
    except tarfile.TarError as error:
        raise DataError(f"{title} is no tar archive ({error}): copy or download it again") from None
    except OSError as error:
        raise DataError(f"{title} cannot be read ({error})") from None
    if fault:
        log.warning("%s: %s", title, fault.detail)
        yield Member(None, fault)


def _next(opened: tarfile.TarFile, title: str) -> tarfile.TarInfo | None:
    """Return the next member; None at the end or where the archive goes no further."""
    try:
        return opened.next()
    except tarfile.ReadError:
        if opened.offset == 0:
            raise
        return None


def _fault_at_end(file: BinaryIO, offset: int, end: int, length: int) -> Unusable | None:
    """Return what is wrong after the last member, which tarfile passes over without a word."""
    if max(end, offset) > length:
        return Unusable(reasons.TRUNCATED, f"the archive ends within a member at byte {length}")
    file.seek(offset)
    block = file.read(_BLOCK)
    if not block:
        log.warning("%s has no end mark: if its archiver writes one, it was cut short", file.name)
        return None
    if len(block) < _BLOCK:
        return Unusable(reasons.TRUNCATED, f"the archive ends within a header at byte {offset}")
    if block.strip(b"\0"):
        return Unusable(
            reasons.DAMAGED, f"the archive is damaged at byte {offset}: what follows is not used"
        )
    return None


def _member(
    archive: ByteFile,
    info: tarfile.TarInfo,
    length: int,
    limit: int,
    mark: str,
    inline: Callable[[str], bool],
    opened: tarfile.TarFile,
) -> Member:
    location = _locate(archive, info, length, limit_for(info.name, limit), mark)
    if isinstance(location, TarMember) and info.size <= _INLINE_BYTES and inline(info.name):
        content = opened.extractfile(info)
        assert content is not None
        location = Inline(content.read())
    return Member(info.name, location)


def _locate(
    archive: ByteFile, info: tarfile.TarInfo, length: int, limit: int, mark: str
) -> Location:
    if info.issym() or info.islnk():
        return not_a_file("a link")
    if not info.isreg():
        return not_a_file("a device")
    if info.issparse():
        return Unusable(reasons.UNREADABLE, "a file with holes: pack it without --sparse")
    try:
        check_length(info.size, limit)
    except ImageFault as fault:
        return Unusable(fault.reason, fault.detail)
    if info.offset_data + info.size > length:
        return Unusable(reasons.TRUNCATED, "the archive ends within this member")
    return TarMember(archive, info.offset_data, info.size, mark)
