"""What a folder holds, to compare it with another."""

import hashlib
from pathlib import Path


def tree(folder: Path) -> dict[str, str]:
    """Return relative path -> sha256 of every file below `folder`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
