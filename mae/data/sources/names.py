"""What a file's name tells: image, hidden, archive; and how it is shown."""

import re
from pathlib import PurePosixPath

_READ = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".npy"),
}
# Images all the same: seen, and quarantined with a word, rather than passed over.
_NOT_READ = {
    *(".heic", ".heif", ".jxl", ".svg", ".psd", ".exr", ".hdr", ".dcm", ".nii", ".dng", ".cr2"),
    *(".nef", ".arw", ".raw", ".eps", ".ico"),
}
IMAGE_SUFFIXES = frozenset(_READ | _NOT_READ)

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz"),
    *(".tar.zst", ".tzst"),
)
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")


def is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) or name.lower() in ("thumbs.db", "desktop.ini")


def has_image_suffix(name: str) -> bool:
    return suffix(name) in IMAGE_SUFFIXES


def is_read(name: str) -> bool:
    """False where the suffix is that of an image format that is not read here."""
    return suffix(name) not in _NOT_READ


def suffix(name: str) -> str:
    """Return the suffix in lower case with its dot, "" where there is none."""
    _, dot, last = name.rpartition(".")  # asked several times of every file: pathlib is slow
    return f".{last.lower()}" if dot and "/" not in last else ""


def archive_stem(name: str) -> str | None:
    """'data/train.tar.gz' -> 'train'; None where the name is no archive's."""
    last = PurePosixPath(name).name
    for ending in (*ZIP_SUFFIXES, *TAR_SUFFIXES):
        if last.lower().endswith(ending) and len(last) > len(ending):
            return last[: -len(ending)]
    return None


def printable(name: str) -> str:
    """Return the name as valid text: bytes that are no UTF-8 appear as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def inside(name: str) -> str | None:
    """Return the name without '.' and empty parts, or None where it leads out of its root."""
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name) or "\0" in name:
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if any(".." in part.split("\\") for part in parts):
        return None
    return "/".join(parts)
