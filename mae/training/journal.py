"""What a run says of itself: one JSON line per interval, and a progress bar."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Journal:
    """journal.jsonl in `folder`, and a bar on stderr; without a folder, neither.

    Going on from step s drops the lines after s, so that a resumed run's journal reads like
    an uninterrupted one's.
    """

    def __init__(self, folder: Path | None, title: str, start: int, total: int) -> None:
        self.path = None if folder is None else folder / "journal.jsonl"
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=title,
            unit="step",
            disable=folder is None,
            # A log file gets a line now and then, a terminal a bar that moves.
            mininterval=0.5 if sys.stderr.isatty() else 20,
        )
        if self.path is not None:
            kept = [line for line in read_journal(self.path) if line["step"] <= start]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(text, encoding="utf-8")

    def advance(self) -> None:
        self._bar.update()

    def write(self, line: dict[str, Any]) -> None:
        self._bar.set_postfix(loss=f"{line['loss']:.4f}", lr=f"{line['lr']:.2e}", refresh=False)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Put the lines on the disk: a checkpoint must not know of steps that the journal lost."""
        if self.path is not None and self.path.exists():
            with self.path.open("a", encoding="utf-8") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        self._bar.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
