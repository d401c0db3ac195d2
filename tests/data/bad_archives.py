"""Archives that are damaged, or made to do harm."""

import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping

from mae.data import reasons

BOMB_LENGTH = 64 << 20


def unsafe_tar(good: Mapping[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """Return a tar with `good` members among bad ones, and the bad ones' names and reasons."""
    buffer = io.BytesIO()
    bad: dict[str, str] = {}
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            content = b"harm" if kind == tarfile.REGTYPE else b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
            bad[name] = reasons.UNSAFE

        add("/etc/absolute.png")
        add("../above.png")
        add("a/../../winding.png")
        add("C:/windows.png")
        add("..\\backwards.png")
        for name, data in good.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        add("soft.png", tarfile.SYMTYPE, "/etc/passwd")
        add("hard.png", tarfile.LNKTYPE, next(iter(good)))
        add("pipe.png", tarfile.FIFOTYPE)
        add("device.png", tarfile.CHRTYPE)
    return buffer.getvalue(), bad


def unsafe_zip(good: Mapping[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """Return a zip with `good` members among bad ones, and the bad ones' names and reasons."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("/etc/absolute.png", "../above.png", "a/../../winding.png", "C:/windows.png"):
            archive.writestr(_info(name), b"harm")
        for name, data in good.items():
            archive.writestr(name, data)
        link = _info("soft.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, b"/etc/passwd")
        pipe = _info("pipe.png")
        pipe.external_attr = (stat.S_IFIFO | 0o666) << 16
        archive.writestr(pipe, b"")
        archive.writestr("bomb.png", bytes(BOMB_LENGTH))
        packed_as_lzma = _info("lzma.png")
        packed_as_lzma.compress_type = zipfile.ZIP_LZMA
        archive.writestr(packed_as_lzma, b"harmless")
    bad = dict.fromkeys(
        (
            *("/etc/absolute.png", "../above.png", "a/../../winding.png", "C:/windows.png"),
            *("soft.png", "pipe.png"),
        ),
        reasons.UNSAFE,
    )
    return buffer.getvalue(), {
        **bad,
        "bomb.png": reasons.TOO_LARGE,
        "lzma.png": reasons.UNREADABLE,
    }


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.filename = name  # as it is: the constructor tidies some
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def encrypted_zip(name: str) -> bytes:
    """Return a zip whose one member says that it is encrypted."""
    content = bytearray(_plain_zip(name, b"secret"))
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.index(signature) + offset
        content[at] |= 1
    return bytes(content)


def lying_zip(name: str, said: int, length: int) -> bytes:
    """Return a zip whose one deflated member says it has `said` bytes and unpacks to `length`."""
    content = bytearray(_plain_zip(name, bytes(length)))
    for signature, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", content, content.index(signature) + offset, said)
    return bytes(content)


def flipped(archive: bytes, member: bytes) -> bytes:
    """Return the archive with one bit of a stored member's bytes turned."""
    at = archive.index(member) + len(member) // 2
    return archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :]


def zip_of_raw_utf_8(name: str, data: bytes) -> bytes:
    """Return a zip that holds a name in UTF-8 without saying so, as many archivers write it."""
    stand_in = "x" * len(name.encode())
    return _plain_zip(stand_in, data).replace(stand_in.encode(), name.encode())


def zip_made_on_windows(name: str, data: bytes) -> bytes:
    """Return a zip with backslashes in its names."""
    content = bytearray(_plain_zip(name, data))
    content[content.index(b"PK\1\2") + 5] = 0
    return bytes(content).replace(name.encode(), name.replace("/", "\\").encode())


def tar_damaged_after(content: bytes, members: int) -> bytes:
    """Return the tar with the header after so many one-block members overwritten."""
    at = members * 2 * tarfile.BLOCKSIZE
    return content[:at] + b"\xff" * tarfile.BLOCKSIZE + content[at + tarfile.BLOCKSIZE :]


def _plain_zip(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def bad_crc_zip(name: str, data: bytes) -> bytes:
    """Return a zip whose member's bytes are whole and whose checksum is another's."""
    content = _plain_zip(name, data)
    right, wrong = (struct.pack("<I", zlib.crc32(one)) for one in (data, data + b"x"))
    return content.replace(right, wrong)
