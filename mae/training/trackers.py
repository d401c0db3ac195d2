"""TensorBoard and DVCLive: a run's figures where people are used to look at them.

Both write below the run's folder and nowhere else, and send nothing anywhere. The journal stays
the record; a tracker that fails is left out for the rest of the run.
"""

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mae.errors import ParamsError
from mae.files import replacing_file

LOG = logging.getLogger(__name__)


class Tracker(Protocol):
    def write(self, step: int, values: dict[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """The wanted trackers of a run that goes on after step `start`.

    Raises ParamsError where one is unknown or its package is missing. What they raise besides is
    warned of once, and they are used no more.
    """

    def __init__(self, names: tuple[str, ...], folder: Path | None, start: int) -> None:
        self._folder = folder
        self._open: dict[str, Tracker] = {}
        for name in names:
            self._begin(name, start)

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """Add values under `group/name`."""
        named = {f"{group}/{name}": value for name, value in values.items()}
        self._each(lambda tracker: tracker.write(step, named))

    def rewind(self, step: int) -> None:
        """Forget what came after `step`."""
        names = list(self._open)
        self.close()
        for name in names:
            self._begin(name, step)

    def flush(self) -> None:
        self._each(lambda tracker: tracker.flush())

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())
        self._open = {}

    def _begin(self, name: str, start: int) -> None:
        if name not in _OPENERS:
            raise ParamsError(
                f"runtime.trackers: {name} is unknown, choose from {', '.join(_OPENERS)}"
            )
        assert self._folder is not None
        try:
            self._open[name] = _OPENERS[name](self._folder / name, start)
        except ImportError as error:
            raise ParamsError(
                f"runtime.trackers: {name} is not installed ({error}): "
                "pip install 'maestro-mae[trackers]', or take it out of the list"
            ) from None
        except Exception as error:  # a tracker may fail in any way: the run matters more
            self._give_up(name, error)

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                act(tracker)
            except Exception as error:
                self._open.pop(name)
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        LOG.warning("%s failed, the run goes on without it: %s", name, reason)


class _TensorBoard:
    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Of an earlier part of the run TensorBoard then hides the steps from this one on.
        purged = start + 1 if folder.exists() else None
        self._writer = SummaryWriter(str(folder), purge_step=purged)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _DvcLive:
    """DVCLive's files without its wish to know the repository.

    Left to itself it fails in a Git repository without commits, starts a DVC repository in one
    that has none, and reports to DVC Studio where a token is set. `next_step` and `end` leave
    signals below .dvc/, so the summary is written directly.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from dvclive import Live

        class LocalLive(Live):
            def _init_dvc(self) -> None:
                pass

            def _init_studio(self) -> None:
                self._studio_events_to_skip |= {"start", "data", "done"}

        _end_tables_at(folder, start)
        self._live: Any = LocalLive(
            str(folder), resume=start > 0, report=None, save_dvc_exp=False, dvcyaml=None
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        self._live.step = step
        for name, value in values.items():
            self._live.log_metric(name, value)
        self._live.make_summary()

    def flush(self) -> None:
        pass  # it opens and closes its files at every line

    def close(self) -> None:
        pass


def _end_tables_at(folder: Path, start: int) -> None:
    """Drop the rows after `start` from DVCLive's tables, and a summary that a kill left broken."""
    for path in (folder / "plots/metrics").rglob("*.tsv"):
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file, delimiter="\t") if len(row) == 2]
        kept = [row for row in rows if row[0] == "step" or int(row[0]) <= start]
        with replacing_file(path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows(kept)
    summary = folder / "metrics.json"
    if summary.exists():
        try:
            json.loads(summary.read_text(encoding="utf-8"))
        except ValueError:
            summary.unlink()


_OPENERS: dict[str, Callable[[Path, int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "dvclive": _DvcLive,
}
