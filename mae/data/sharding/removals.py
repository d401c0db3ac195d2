"""data/removals.txt: images that must not be in the shards, whatever the source still holds."""

import re
from dataclasses import dataclass
from pathlib import Path

from mae.errors import DataError

REMOVALS = Path("data/removals.txt")

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Removals:
    """ids: names of images, as in the manifest. hashes: sha256 of their bytes, in hexadecimals."""

    ids: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()

    def named(self, key: str, sha256: str | None) -> bool:
        return key in self.ids or sha256 in self.hashes


def read_removals(path: Path) -> Removals:
    """Read one id or sha256 a line; blank lines and those that begin with # say nothing.

    No file, no removals. Raises DataError for a file that is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return Removals()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}): save it as such") from None
    entries = [line.strip() for line in lines]
    entries = [entry for entry in entries if entry and not entry.startswith("#")]
    hashes = {entry.lower() for entry in entries if _SHA256.fullmatch(entry)}
    return Removals(frozenset(entries), frozenset(hashes))
