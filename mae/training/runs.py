"""Runs as their folders tell of them, at any moment and from any process."""

import socket
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mae.errors import DataError
from mae.files import read_json
from mae.training.journal import (
    Line,
    duration,
    journal_file,
    read_events,
    read_journal,
    read_observed,
)

_RECENT = 10  # interval lines that say how fast a run is now
_PATIENCE = (120.0, 10.0)  # seconds, and intervals, without a line that are nothing unusual


@dataclass(frozen=True)
class RunState:
    """One run below `runs/<stage>/<identity>/`.

    about: what the trainer wrote of it at its start, empty for a run older than that; lines,
    events, observed: the journal's. checkpoint: steps done at the newest one. alive: whether its
    process lives, None where that cannot be seen from this machine. silent_for: seconds since the
    journal grew.
    """

    folder: Path
    about: dict[str, Any]
    lines: list[Line]
    events: list[Line]
    observed: list[Line]
    checkpoint: int | None
    alive: bool | None
    silent_for: float

    @property
    def stage(self) -> str:
        return self.folder.parent.name

    @property
    def identity(self) -> str:
        return self.folder.name

    @property
    def step(self) -> int:
        """Steps done, as far as the journal or a checkpoint tells."""
        journalled = self.lines[-1]["step"] if self.lines else 0
        return max(journalled, self.checkpoint or 0)

    @property
    def total(self) -> int | None:
        return self.about.get("total")

    @property
    def state(self) -> str:
        """running | starting | silent | interrupted | diverged | finished | stopped

        silent: it should be running and has long said nothing. stopped: killed, or it crashed.
        """
        if self.total is not None and self.step >= self.total:
            return "finished"
        unusual = self.silent_for > self._patience
        if self.alive or (self.alive is None and not unusual):
            return "silent" if unusual else "running" if self.lines else "starting"
        kind = self.events[-1]["event"] if self.events else None
        ended = kind in ("interrupted", "diverged") and self.events[-1]["step"] >= self.step
        return str(kind) if ended else "stopped"

    @property
    def seconds_left(self) -> float | None:
        """Time to the end at the pace of late, of a run that goes on."""
        pace = self._seconds_per_step()
        if self.total is None or pace is None or self.state != "running":
            return None
        return (self.total - self.step) * pace

    @property
    def bad_steps(self) -> int:
        return sum(event["event"] == "skipped" for event in self.events)

    def health(self) -> str:
        """Return the state in a few words, with what is odd about the run."""
        said = [self.state]
        if self.state in ("running", "silent", "starting"):
            said.append(f"last sign {duration(self.silent_for)} ago")
        if self.state in ("interrupted", "stopped"):
            said.append("run the same command again to continue")
        if self.bad_steps:
            said.append(f"{self.bad_steps} bad {_counted('step', self.bad_steps)} left out")
        returns = sum(event["event"] == "rewound" for event in self.events)
        if returns:
            said.append(f"went back {returns} {_counted('time', returns)}")
        return ", ".join(said)

    def _seconds_per_step(self) -> float | None:
        recent = [line for line in self.lines[-_RECENT - 1 :] if line.get("seconds")]
        steps = recent[-1]["step"] - recent[0]["step"] if len(recent) > 1 else 0
        return sum(line["seconds"] for line in recent[1:]) / steps if steps > 0 else None

    @property
    def _patience(self) -> float:
        least, intervals = _PATIENCE
        usual = self.lines[-1].get("seconds") if self.lines else None
        return max(least, intervals * (usual or 0.0))


def list_runs(folder: Path) -> list[RunState]:
    """Return the runs below `folder`, the one that gave a sign of life last first."""
    signs = [*folder.glob("*/*/run.json"), *folder.glob("*/*/journal.jsonl")]
    found = {sign.parent for sign in signs}
    return sorted((read_run(run) for run in found), key=lambda run: run.silent_for)


def find_run(folder: Path, identity: str) -> RunState:
    """Return the run whose identity begins so. Raises DataError for none, or several."""
    runs = list_runs(folder)
    fitting = [run for run in runs if run.identity.startswith(identity)]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(run.identity for run in fitting or runs) or "none"
    what = "several runs begin with" if fitting else f"{folder} holds no run"
    raise DataError(f"{what} {identity}: name one of these: {there}")


def read_run(folder: Path) -> RunState:
    about = _about(folder)
    journal = journal_file(folder)
    sign = journal if journal.exists() else folder / "run.json"
    return RunState(
        folder=folder,
        about=about,
        lines=read_journal(folder),
        events=read_events(folder),
        observed=read_observed(folder),
        checkpoint=_newest_checkpoint(folder),
        alive=_is_alive(about),
        silent_for=max(0.0, time.time() - sign.stat().st_mtime),
    )


def read_ranks(folder: Path) -> dict[int, list[Line]]:
    """Return the interval lines of every process of a run, by its rank."""
    others = sorted(int(path.stem.removeprefix("rank-")) for path in folder.glob("rank-*.jsonl"))
    return {rank: read_journal(folder, rank) for rank in (0, *others)}


def _counted(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _newest_checkpoint(folder: Path) -> int | None:
    """Return the steps done at it, by its name alone: reading it would take torch."""
    steps = (path.name.removeprefix("step-") for path in folder.glob("checkpoints/step-*"))
    return max((int(step) for step in steps if step.isdigit()), default=None)


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = read_json(folder / "run.json")
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _is_alive(about: dict[str, Any]) -> bool | None:
    """Whether the process that wrote run.json lives, and not another that got its number."""
    if not about:
        return False
    if about.get("host") != socket.gethostname():
        return None
    import psutil

    try:
        born = psutil.Process(int(about["pid"])).create_time()
        return bool(born <= datetime.fromisoformat(about["started"]).timestamp() + 1)
    except (psutil.Error, KeyError, ValueError):
        return False
