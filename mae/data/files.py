"""Finding image files below a folder, and reading one or saying why not."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mae.data import reasons
from mae.data.records import Rejected
from mae.errors import DataError

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

# No image of data.max_pixels needs more bytes than four channels of 16 bits and a header.
_BYTES_PER_PIXEL = 8
_HEADER_BYTES = 1 << 20


def is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) or name.lower() in ("thumbs.db", "desktop.ini")


def has_image_suffix(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def child_folders(folder: Path) -> list[str]:
    """Return the names of the visible folders in `folder`, links included, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_folder(entry))


def loose_images(folder: Path) -> list[str]:
    """Return the names of the images directly in `folder`, sorted."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not _is_folder(entry)]
    return sorted(name for name in names if has_image_suffix(name) and not is_hidden(name))


def _is_folder(entry: os.DirEntry) -> bool:
    return entry.is_dir() and not is_hidden(entry.name) and not has_image_suffix(entry.name)


class ImageFiles:
    """Every file below `folder` that its suffix calls an image, as sorted relative posix paths.

    Links are followed, a folder that contains itself only once. `ignored` counts the files
    without an image's suffix that were met on the way.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ignored = 0

    def __iter__(self) -> Iterator[str]:
        self.ignored = 0
        yield from self._below(self.folder, "", ())

    def _below(self, folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
        real = os.path.realpath(folder)
        if real in above:
            return
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=_sort_key)
        except OSError as error:
            raise DataError(f"the folder {folder} cannot be listed ({error.strerror})") from None
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if _is_folder(entry):
                yield from self._below(
                    folder / entry.name, f"{prefix}{entry.name}/", (*above, real)
                )
            elif has_image_suffix(entry.name):
                yield prefix + entry.name
            else:
                self.ignored += 1


def _sort_key(entry: os.DirEntry) -> str:
    """Sort as whole relative paths sort: a folder as if its slash were part of its name."""
    return f"{entry.name}/" if _is_folder(entry) else entry.name


def read_image(path: Path, identity: str, max_pixels: int) -> bytes | Rejected:
    """Return the file's bytes, or why they cannot be had."""
    if path.suffix.lower() in _NOT_READ:
        return Rejected(
            identity, reasons.UNSUPPORTED, f"{path.suffix} is not read here: convert to PNG or JPEG"
        )
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            return Rejected(
                identity,
                reasons.DANGLING_LINK,
                f"a link to {path.readlink()}, which is not there",
            )
        return Rejected(identity, reasons.MISSING, f"{path} is not there")
    except OSError as error:
        return Rejected(identity, reasons.UNREADABLE, str(error.strerror))
    if not stat.S_ISREG(found.st_mode):
        return Rejected(identity, reasons.UNREADABLE, "a folder or device, not a file")
    if found.st_size > max_pixels * _BYTES_PER_PIXEL + _HEADER_BYTES:
        return Rejected(
            identity,
            reasons.TOO_LARGE,
            f"{found.st_size} bytes, more than any image of data.max_pixels {max_pixels} needs",
        )
    try:
        return path.read_bytes()
    except OSError as error:
        return Rejected(identity, reasons.UNREADABLE, str(error.strerror))
