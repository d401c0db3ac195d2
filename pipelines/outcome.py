"""How one stage ended, read from what `dvc repro` and the stage print.

DVC's own exit code only says that something failed, so the stage's comes from its error line.
"""

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from mae.errors import CheckpointError, DataError, DivergedError, Interrupted, ParamsError
from pipelines.edits import EditedError


class Outcome(StrEnum):
    DONE = "done"
    RESTORED = "restored"
    UNCHANGED = "unchanged"
    INVALID_PARAMS = "invalid parameters"
    BAD_DATA = "bad data"
    BAD_CHECKPOINT = "bad checkpoint"
    DIVERGED = "diverged"
    CHANGED = "changed meanwhile"
    NO_SPACE = "disk full"
    INTERRUPTED = "interrupted"
    TIMED_OUT = "timed out"
    KILLED = "killed"
    BUSY = "busy"
    FAILED = "failed"
    SKIPPED = "skipped"

    @property
    def good(self) -> bool:
        return self in (Outcome.DONE, Outcome.RESTORED, Outcome.UNCHANGED)

    @property
    def worth_another_try(self) -> bool:
        """Whether the same stage may do well when it is simply run again."""
        return self in (Outcome.KILLED, Outcome.BUSY, Outcome.FAILED)


@dataclass(frozen=True)
class StageRun:
    """What became of one stage; `exit_code` is the stage's own where it left one.

    seconds: of all `attempts` and the waits between them; the rest is of the last.
    """

    stage: str
    outcome: Outcome
    seconds: float = 0.0
    exit_code: int = 0
    message: str = ""
    attempts: int = 1


BY_EXIT_CODE = {
    ParamsError.exit_code: Outcome.INVALID_PARAMS,
    DataError.exit_code: Outcome.BAD_DATA,
    CheckpointError.exit_code: Outcome.BAD_CHECKPOINT,
    DivergedError.exit_code: Outcome.DIVERGED,
    EditedError.exit_code: Outcome.CHANGED,
    Interrupted.exit_code: Outcome.INTERRUPTED,
}
POLITE_SIGNALS = (signal.SIGINT, signal.SIGTERM)
TIMED_OUT_CODE = 124  # as the command `timeout` has it

_UNCHANGED = re.compile(r"^(Stage )?'.+' didn't change, skipping$")
_RESTORED = re.compile(r"^Stage '.+' is cached - skipping run")
_STAGE_EXIT = re.compile(r"^ERROR: failed to reproduce '.+': failed to run: .*exited with (-?\d+)$")
_DVC_ERROR = re.compile(r"^ERROR: (.+)$")
_BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock")
_NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")
_MISSING = re.compile(r"missing data|No such file|not in cache|[Cc]heckout failed|corrupt")
_LOG_LINE = re.compile(r"^\d\d:\d\d:\d\d (\w+) +(.*)$")


def log_level(line: str) -> str:
    """Return the level that a stage, or dvc, gave to a line of its output."""
    entry = _LOG_LINE.match(line)
    return entry[1] if entry else ("ERROR" if _DVC_ERROR.match(line) else "INFO")


class OutcomeReader:
    """Is shown the lines of one `dvc repro --single-item` and then says how it ended."""

    def __init__(self) -> None:
        self._skipped: Outcome | None = None
        self._stage_exit: int | None = None
        self._busy = False
        self._dvc_error = ""
        self._fault: list[str] = []
        self._in_fault = False

    def see(self, line: str) -> None:
        if _UNCHANGED.match(line):
            self._skipped = Outcome.UNCHANGED
        elif _RESTORED.match(line):
            self._skipped = Outcome.RESTORED
        elif exited := _STAGE_EXIT.match(line):
            self._stage_exit = int(exited[1])
        elif error := _DVC_ERROR.match(line):
            self._dvc_error = error[1]
        else:
            self._follow_fault(line)
            return
        self._in_fault = False
        self._busy = self._busy or bool(_BUSY.search(line))

    def _follow_fault(self, line: str) -> None:
        """Keep the stage's last error: its log line and the lines that belong to it."""
        self._busy = self._busy or bool(_BUSY.search(line))
        if entry := _LOG_LINE.match(line):
            self._in_fault = entry[1] == "ERROR"
            if self._in_fault:
                self._fault = [entry[2]]
        elif self._in_fault:
            self._fault.append(line)

    def result(self, dvc_code: int) -> tuple[Outcome, int, str]:
        """Return outcome, exit code and a message for people, given the exit code of dvc."""
        if dvc_code == 0:
            return self._skipped or Outcome.DONE, 0, ""
        code = dvc_code if self._stage_exit is None else self._stage_exit
        if self._stage_exit is None and self._busy:
            return Outcome.BUSY, code, "another dvc holds this stage or what it reads"
        number = _signal_number(code)
        if number is None:
            return self._explained(code)
        if number in POLITE_SIGNALS:
            return Outcome.INTERRUPTED, Interrupted.exit_code, "asked to stop"
        hint = ": out of memory?" if number == signal.SIGKILL else ""
        return Outcome.KILLED, 128 + number, f"killed by {_signal_name(number)}{hint}"

    def _explained(self, code: int) -> tuple[Outcome, int, str]:
        message = self._message(code)
        if _NO_SPACE.search(message):
            return Outcome.NO_SPACE, code, f"{message}: free space and run it again"
        if self._stage_exit is None and _MISSING.search(self._dvc_error):
            message += (
                "; DVC lacks what this stage reads, or its copy is damaged: 'dvc pull' fetches it, "
                "or run the flow without --stage, which makes it again"
            )
        return BY_EXIT_CODE.get(code, Outcome.FAILED), code, message

    def _message(self, code: int) -> str:
        if "Traceback (most recent call last):" in self._fault:
            return self._fault[-1].strip()
        return "\n".join(self._fault).strip() or self._dvc_error or f"exit code {code}"


def _signal_number(code: int) -> int | None:
    """Return the signal behind an exit code: -N from the kernel, 128 + N from a shell."""
    number = -code if code < 0 else code - 128
    return number if 0 < number < signal.NSIG else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def first_failure(runs: Iterable[StageRun]) -> StageRun | None:
    """Return the run that decides the whole: an interruption, else the first that failed."""
    failed = [run for run in runs if not run.outcome.good and run.outcome != Outcome.SKIPPED]
    interrupted = [run for run in failed if run.outcome == Outcome.INTERRUPTED]
    return next(iter(interrupted or failed), None)
