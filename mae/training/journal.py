"""What a run says of itself: one JSON line per interval, and a progress bar."""

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mae.files import replacing_file

_NAME = "journal.jsonl"


class Journal:
    """journal.jsonl in `folder`, and a bar on stderr; without a folder, neither.

    Going on from step s drops the lines after s, so that a resumed run's journal reads like
    an uninterrupted one's.
    """

    def __init__(self, folder: Path | None, title: str, start: int, total: int) -> None:
        self.path = None if folder is None else folder / _NAME
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
            kept = [line for line in read_journal(self.path.parent) if line["step"] <= start]
            with replacing_file(self.path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))

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


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's journal; a last line cut short by a kill is left out."""
    path = folder / _NAME
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def write_loss_curve(folder: Path, path: Path) -> None:
    """Write the run's loss and learning rate by step as CSV: what of the journal is repeatable."""
    columns = ("step", "epoch", "loss", "lr")
    with replacing_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(read_journal(folder))
