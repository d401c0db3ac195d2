"""What a run says of itself: JSON lines, figures for trackers, and its progress on the screen."""

import csv
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mae.errors import MaestroError
from mae.files import replacing_file
from mae.training.trackers import Trackers

LOG = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOG_LINES = 20

Line = dict[str, Any]


class Journal:
    """journal.jsonl in `folder` by the first process, rank-<r>.jsonl by each of the others.

    Lines are of three kinds, all with their step: intervals (`write`), observations (`observed`)
    and events (`event`). Going on from step s drops the lines after s, so that a resumed run's
    journal reads like an uninterrupted one's. A disk that fills up later is warned of once, and
    the run goes on. Without a folder all this is silent.

    The first process also shows the progress, and hands its figures to the `trackers`. Raises
    ParamsError for a tracker that is not installed, MaestroError for a folder that cannot be
    written.
    """

    def __init__(
        self,
        folder: Path | None,
        title: str,
        start: int,
        total: int,
        *,
        rank: int = 0,
        trackers: tuple[str, ...] = (),
    ) -> None:
        leads = folder is not None and rank == 0
        self.path = None if folder is None else journal_file(folder, rank)
        self._warned = False
        self._line_is_open = False
        if folder is not None:
            self._drop_after(start, folder, leads)
        self._trackers = Trackers(trackers if leads else (), folder, start)
        self._progress = _Progress(title, start, total, shown=leads)

    def advance(self) -> None:
        self._progress.advance()

    def write(self, line: Line) -> None:
        """Add the figures of an interval, those since the interval line before."""
        if self.path is None:
            return
        line = {name: _plain(value) for name, value in line.items()}
        self._append(line)
        self._trackers.write(line["step"], "train", _figures(line))
        self._progress.tell(line)

    def observed(self, step: int, values: dict[str, float]) -> None:
        """Add what was observed after `step`; values that are the same at every run."""
        if self.path is None:
            return
        values = {name: _plain(value) for name, value in values.items()}
        self._append({"step": step, "observed": values})
        self._trackers.write(step, "observed", _figures(values))

    def event(self, step: int, kind: str, **more: Any) -> None:
        """Add something that happened; `step` is the one after which the run goes on."""
        if self.path is not None:
            self._append({"step": step, "event": kind, **more})

    def rewind(self, step: int) -> None:
        """Drop the figures after `step`, to which the run went back; the events stay."""
        if self.path is None:
            return
        with self._failing_softly():
            _rewrite(self.path, lambda line: line["step"] <= step or "event" in line)
        self._trackers.rewind(step)
        self._progress.rewind(step)

    def flush(self) -> None:
        """Put the lines on the disk: a checkpoint must not know of steps that the journal lost."""
        self._trackers.flush()
        if self.path is not None and self.path.exists():
            with self._failing_softly(), self.path.open("a", encoding="utf-8") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        self._trackers.close()
        self._progress.close()

    def _drop_after(self, start: int, folder: Path, leads: bool) -> None:
        """Let the own file end at `start`, and the leader also those of ranks that are gone.

        Two processes may do this to one file at once: both write the same, and nobody adds to it
        before all have taken a step together.
        """
        assert self.path is not None
        paths = {self.path, *(folder.glob("rank-*.jsonl") if leads else ())}
        try:
            for path in paths:
                _rewrite(path, lambda line: line["step"] <= start)
        except OSError as error:
            raise MaestroError(
                f"{folder} cannot be written ({error}): free space or mend its permissions"
            ) from None

    def _append(self, line: Line) -> None:
        assert self.path is not None
        text = json.dumps(line, allow_nan=False, default=_plain) + "\n"
        # What a full disk left of the line before must not swallow this one.
        text = "\n" + text if self._line_is_open else text
        self._line_is_open = True
        with self._failing_softly(), self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            self._line_is_open = False

    @contextmanager
    def _failing_softly(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._warned:
                LOG.warning("%s cannot be written, the run goes on without: %s", self.path, error)
            self._warned = True


class _Progress:
    """A bar on a terminal; in a log file a line now and then."""

    def __init__(self, title: str, start: int, total: int, *, shown: bool) -> None:
        self._title, self._total = title, total
        self._logs = shown and not sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=title,
            unit="step",
            mininterval=0.5,
            disable=not shown or self._logs,
        )
        self._step = start
        self._begun = self._logged = time.monotonic()
        self._taken = 0

    def advance(self) -> None:
        self._step += 1
        self._taken += 1
        self._bar.update()

    def tell(self, line: Line) -> None:
        self._bar.set_postfix_str(in_words(line), refresh=False)
        now = time.monotonic()
        late = now - self._logged >= _SECONDS_BETWEEN_LOG_LINES or line["step"] >= self._total
        if not (self._logs and late):
            return
        self._logged = now
        left = (self._total - self._step) * (now - self._begun) / max(1, self._taken)
        LOG.info(
            "%s: step %d of %d, %s, %s left",
            self._title,
            line["step"],
            self._total,
            in_words(line),
            duration(left),
        )

    def rewind(self, step: int) -> None:
        self._step = self._bar.n = step
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


def in_words(line: Line) -> str:
    """Return the figures of an interval line that say how a run goes."""
    formats = {
        "loss": "loss {:.4f}",
        "lr": "lr {:.2e}",
        "images_per_second": "{:.4g} images/s",
        "wait_share": "{:.0%} waiting for data",
    }
    known = ((form, line.get(name)) for name, form in formats.items())
    return ", ".join(form.format(value) for form, value in known if value is not None)


def duration(seconds: float) -> str:
    """Return a time as people say it: 12 s, 7 min, 3 h 20 min, 2 d 5 h."""
    minutes, hours = round(seconds / 60), int(seconds / 3600)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {int(seconds / 60) % 60} min"
    return f"{hours // 24} d {hours % 24} h"


# --- the files ------------------------------------------------------------------------------------


def journal_file(folder: Path, rank: int = 0) -> Path:
    return folder / ("journal.jsonl" if rank == 0 else f"rank-{rank}.jsonl")


def read_journal(folder: Path, rank: int = 0) -> list[Line]:
    """Return the interval lines of a process, oldest first."""
    return [line for line in _lines(journal_file(folder, rank)) if "loss" in line]


def read_observed(folder: Path) -> list[Line]:
    """Return {"step": s, **values} of each observation, oldest first."""
    lines = _lines(journal_file(folder))
    return [{"step": line["step"], **line["observed"]} for line in lines if "observed" in line]


def read_events(folder: Path) -> list[Line]:
    """Return {"step": s, "event": kind, ...} of each event, oldest first."""
    return [line for line in _lines(journal_file(folder)) if "event" in line]


def write_loss_curve(folder: Path, path: Path) -> None:
    """Write the run's loss and learning rate by step as CSV: what of the journal is repeatable."""
    _write_csv(path, ("step", "epoch", "loss", "lr"), read_journal(folder))


def write_observed(folder: Path, path: Path) -> None:
    """Write what was observed by step as CSV; a value that a step lacks is left empty."""
    observed = read_observed(folder)
    columns = dict.fromkeys(["step", *(name for line in observed for name in line)])
    _write_csv(path, columns, observed)


def _write_csv(path: Path, columns: Iterable[str], lines: list[Line]) -> None:
    with replacing_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)


def _lines(path: Path) -> list[Line]:
    """Return the lines of a file; one that a kill or a full disk cut short is left out."""
    if not path.exists():
        return []
    parsed = (_parsed(text) for text in path.read_text(encoding="utf-8").splitlines())
    return [line for line in parsed if line is not None]


def _parsed(text: str) -> Line | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "step" in line else None


def _rewrite(path: Path, keeps: Callable[[Line], bool]) -> None:
    kept = [line for line in _lines(path) if keeps(line)]
    with replacing_file(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def _plain(value: Any) -> Any:
    """Return a number of torch or numpy as Python's; one that is not finite, which JSON cannot
    hold, as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figures(line: Line) -> dict[str, float]:
    return {
        name: value
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float)
    }
