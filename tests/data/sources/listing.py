"""Making images and archives, and listing what a source finds in them."""

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from mae.data.records import Record, Rejected, Source
from mae.data.sources.opening import Opening
from tests.data import zoo

LIMIT = 1 << 20
HOW = Opening(LIMIT, "set data.images.path in params.yaml")


def images(*names: str) -> dict[str, bytes]:
    """Return a different PNG for each name."""
    return {
        name: zoo.png(zoo.pattern(10, 12, seed=number)) for number, name in enumerate(sorted(names))
    }


def place(root: Path, content: Mapping[str, bytes]) -> Path:
    for name, data in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def zipped(content: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(content: Mapping[str, bytes], **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def records(source: Source) -> list[Record]:
    return [item for item in source.items if isinstance(item, Record)]


def rejected(items: Iterable[Record | Rejected]) -> dict[str, str]:
    """Return id -> reason of what was rejected."""
    return {item.id: item.reason for item in items if isinstance(item, Rejected)}


def contents(source: Source) -> dict[str, bytes]:
    return {record.id: record.image.read() for record in records(source)}
