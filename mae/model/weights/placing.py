"""What may be replaced by what is written."""

from pathlib import Path

from mae.errors import ParamsError


def check_replaceable(folder: Path, mark: str) -> None:
    """Raise ParamsError unless `folder` is absent, empty, or holds `mark`, as an earlier one."""
    if folder.is_dir() and ((folder / mark).is_file() or not any(folder.iterdir())):
        return
    if folder.exists():
        raise ParamsError(
            f"--out {folder} exists and is no folder of this kind ({mark} is not in it): "
            "give another name"
        )
