"""Members of a zip archive, read at random by their offsets."""

import bz2
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Location
from mae.data.sources.files import ByteFile, Unusable, check_length, limit_for
from mae.data.sources.members import Member, not_a_file
from mae.errors import DataError

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of the extra field
# A member's name and extra field are nearly always shorter: header and bytes in one read.
_ROOM = 1 << 10
_ENCRYPTED = 0x1
_UTF8 = 0x800
_MADE_ON_DOS = 0


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A member of an archive: where its header is, its length packed and unpacked, its CRC-32.

    Reading needs no directory of the archive, so a process that reads opens it at no cost.
    """

    archive: ByteFile
    offset: int
    packed: int
    length: int
    method: int
    crc: int

    def read(self) -> bytes:
        content = self._unpack(self._packed())
        if len(content) != self.length:
            raise ImageFault(
                reasons.DAMAGED,
                f"the archive says {self.length} bytes, and {len(content)} came out",
            )
        if zlib.crc32(content) != self.crc:
            raise ImageFault(reasons.DAMAGED, "the bytes in the archive do not fit their CRC")
        return content

    def stamp(self) -> str:
        return f"{self.crc:08x}-{self.length}"

    def _packed(self) -> bytes:
        found = self.archive.read_range(self.offset, _HEADER.size + _ROOM + self.packed)
        if len(found) < _HEADER.size:
            raise ImageFault(reasons.TRUNCATED, "the archive ends before this member")
        signature, name, extra = _HEADER.unpack_from(found)
        if signature != b"PK\3\4":
            raise ImageFault(reasons.DAMAGED, "the archive holds no member where it should be")
        start = _HEADER.size + name + extra
        if name + extra > _ROOM:
            content = self.archive.read_range(self.offset + start, self.packed)
        else:
            content = found[start : start + self.packed]
        if len(content) < self.packed:
            raise ImageFault(reasons.TRUNCATED, "the archive ends within this member")
        return content

    def _unpack(self, content: bytes) -> bytes:
        """Never makes more than one byte above the length that was declared."""
        try:
            if self.method == zipfile.ZIP_DEFLATED:
                return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, self.length + 1)
            if self.method == zipfile.ZIP_BZIP2:
                return bz2.BZ2Decompressor().decompress(content, self.length + 1)
        except (zlib.error, OSError, ValueError) as error:
            raise ImageFault(
                reasons.DAMAGED, f"the bytes in the archive cannot be unpacked ({error})"
            ) from None
        return content


def zip_members(archive: ByteFile, title: str, limit: int) -> Iterator[Member]:
    """Yield every member that is no folder. Raises DataError where the archive is none."""
    try:
        with archive.open() as file, zipfile.ZipFile(file) as opened:
            for info in opened.infolist():
                if not info.is_dir():
                    name = _name(info)
                    yield Member(name, _locate(archive, info, limit_for(name, limit)))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error) as error:
        raise DataError(
            f"{title} is no whole zip archive ({error}): if it was cut short, the list of its "
            "members at its end is gone; copy or download it again"
        ) from None
    except OSError as error:
        raise DataError(f"{title} cannot be read ({error})") from None


def _locate(archive: ByteFile, info: zipfile.ZipInfo, limit: int) -> Location:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind and not stat.S_ISREG(kind):
        return not_a_file("a link" if stat.S_ISLNK(kind) else "a device")
    if info.flag_bits & _ENCRYPTED:
        return Unusable(reasons.UNREADABLE, "encrypted: unpack the archive with its password")
    if info.compress_type not in _METHODS:
        return Unusable(
            reasons.UNREADABLE,
            f"packed by method {info.compress_type}, not stored, deflate or bzip2: pack it again",
        )
    try:
        check_length(info.file_size, limit)
    except ImageFault as fault:
        return Unusable(fault.reason, fault.detail)
    # Stored bytes are as many as come out: a directory that says other is not to be believed.
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        return Unusable(reasons.DAMAGED, "stored, but of two lengths")
    return ZipMember(
        archive,
        info.header_offset,
        info.compress_size,
        info.file_size,
        info.compress_type,
        info.CRC,
    )


def _name(info: zipfile.ZipInfo) -> str:
    """Return the name as it was meant: many archivers write UTF-8 and do not say so."""
    name = info.filename
    if not info.flag_bits & _UTF8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/") if info.create_system == _MADE_ON_DOS else name
