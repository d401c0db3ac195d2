"""Checkpoints that are whole, verified, and hold no pickle; written while training goes on.

A checkpoint is a folder step-0000123/ with one safetensors file for each group of tensors
(weights, optimizer, average) and state.json: format, the run it belongs to, the step, the loop's
numbers, the sha256 of each file, and a checksum of itself. It is written under a temporary name
and renamed, so a folder with the final name is complete. One that holds an empty file `keep` is
never removed.
"""

import json
import logging
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mae.errors import CheckpointError
from mae.files import fingerprint, flush_to_disk, read_json, sha256_of_file, write_json
from mae.training.checkpoint_folders import (
    being_written,
    clean,
    put_in_place,
    remove,
    set_aside,
)
from mae.training.snapshot import Snapshot, Tensors

LOG = logging.getLogger(__name__)

FORMAT = 2
_STATE = "state.json"
_KEEP = "keep"
_WHOLE = re.compile(r"step-(\d{7,})")

# What a full or broken disk raises; safetensors wraps the system's errors in its own.
_DISK_ERRORS = (OSError, SafetensorError)


@dataclass(frozen=True)
class Progress:
    """How far a run has come: steps done, and numbers the loop wants back (JSON, finite)."""

    step: int
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds: tensors by group and name, in CPU memory of their own."""

    folder: Path
    progress: Progress
    tensors: Tensors


class _DamagedError(Exception):
    """A checkpoint is not as it was written."""


class Checkpoints:
    """The checkpoints of one run, in `folder`; the newest `keep` stay, and those kept for good.

    Any process may read; one of them saves.
    """

    def __init__(self, folder: Path, identity: str, keep: int) -> None:
        self.folder = folder
        self.identity = identity
        self.keep = keep
        self._snapshot = Snapshot()
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None
        self._failure: str | None = None

    # --- writing ----------------------------------------------------------------------------

    def save(self, progress: Progress, tensors: Tensors, *, keep_for_good: bool = False) -> None:
        """Copy everything, and write it behind the caller's back.

        Waits for the write before this one. A disk that is full or fails is a warning: the run
        goes on, and what was saved before stays. Raises ValueError for a number that is not
        finite.
        """
        numbers = json.loads(json.dumps(progress.numbers, allow_nan=False))
        self.join()
        state = {
            "format": FORMAT,
            "identity": self.identity,
            "step": progress.step,
            "numbers": numbers,
        }
        copies = self._snapshot.take(tensors)
        self._writing = self._writer.submit(self._write, state, copies, keep_for_good)

    def join(self) -> None:
        """Wait for the write under way, if any; a disk that failed has been warned of."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def wait(self) -> None:
        """Wait for the write under way. Raises CheckpointError if the last save failed."""
        self.join()
        if self._failure is not None:
            raise CheckpointError(self._failure)

    def _write(self, state: dict[str, Any], tensors: Tensors, keep_for_good: bool) -> None:
        final = self.folder / f"step-{state['step']:07d}"
        temporary = being_written(final)
        self._failure = None
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            _fill(temporary, state, tensors, keep_for_good)
            put_in_place(temporary, final)
        except _DISK_ERRORS as error:
            self._failure = (
                f"the state after step {state['step']} could not be written to {self.folder} "
                f"({error}): free some space there or mend the disk"
            )
            LOG.warning("%s. Training goes on; the newest saved: %s", self._failure, self._newest())
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if self._failure is None:
            for old in self._all()[: -self.keep]:
                if not (old / _KEEP).exists():
                    remove(old)

    # --- reading ----------------------------------------------------------------------------

    def restore(self) -> Restored | None:
        """Return the newest undamaged checkpoint; None when there is none.

        A damaged one is reported, set aside as damaged-step-..., and passed over for the one
        before it. One of another run or of an unknown format is a CheckpointError: it is not
        ours to pass over. What killed writers of this machine left behind is removed.
        """
        self.join()
        clean(self.folder)
        return self._newest_of(self._all())

    def before(self, step: int) -> Restored | None:
        """Return the newest undamaged checkpoint of `step` or earlier; None when there is none."""
        self.join()
        return self._newest_of([folder for folder in self._all() if _step_of(folder) <= step])

    def discard_after(self, step: int) -> None:
        """Remove what is newer than `step`: a run that went back there takes another way."""
        self.join()
        for folder in self._all():
            if _step_of(folder) > step:
                remove(folder)

    def newest_step(self) -> int | None:
        """Return the step of the newest checkpoint, damaged or not; None when there is none."""
        folders = self._all()
        return _step_of(folders[-1]) if folders else None

    def _newest_of(self, folders: list[Path]) -> Restored | None:
        for folder in reversed(folders):
            try:
                return self._read(folder)
            except PermissionError as error:
                raise CheckpointError(
                    f"checkpoint {folder} may not be read ({error}): give this user the right to"
                ) from None
            except (_DamagedError, *_DISK_ERRORS) as error:
                aside = set_aside(folder)
                LOG.warning(
                    "checkpoint %s is damaged (%s): set aside as %s, trying the one before",
                    folder,
                    error,
                    aside.name,
                )
        if folders:
            LOG.warning("no checkpoint in %s is whole: starts from the beginning", self.folder)
        return None

    def _read(self, folder: Path) -> Restored:
        state = self._read_state(folder)
        tensors = {}
        for name, recorded in state["sha256"].items():
            if sha256_of_file(folder / name) != recorded:
                raise _DamagedError(f"checksum of {name} differs")
            # Not the file's mapping: it would hold the disk space of a checkpoint long removed.
            loaded = load_file(folder / name)
            tensors[Path(name).stem] = {key: value.clone() for key, value in loaded.items()}
        return Restored(folder, Progress(state["step"], state["numbers"]), tensors)

    def _read_state(self, folder: Path) -> dict[str, Any]:
        try:
            state = read_json(folder / _STATE)
        except ValueError as error:
            raise _DamagedError(f"{_STATE}: {error}") from None
        if not isinstance(state, dict):
            raise _DamagedError(f"{_STATE} holds no object")
        checksum = state.pop("checksum", None)
        # The first format had no checksum of its own, and what comes later may make it otherwise.
        foreign = checksum is None and state.get("format") != FORMAT
        if not foreign and checksum != fingerprint(state):
            raise _DamagedError(f"checksum of {_STATE} differs")
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"checkpoint {folder} has format {state.get('format')} and this version reads "
                f"{FORMAT}: use the version of Maestro that wrote it, or delete the folder"
            )
        if state["identity"] != self.identity:
            raise CheckpointError(
                f"checkpoint {folder} belongs to another run ({state['identity']}, not "
                f"{self.identity}): other parameters or data. Move it away"
            )
        return state

    # --- folders ----------------------------------------------------------------------------

    def _all(self) -> list[Path]:
        """Return the checkpoint folders, oldest first."""
        if not self.folder.exists():
            return []
        found = [f for f in self.folder.iterdir() if _WHOLE.fullmatch(f.name)]
        return sorted(found, key=_step_of)

    def _newest(self) -> str:
        folders = self._all()
        return folders[-1].name if folders else "none"


def _fill(folder: Path, state: dict[str, Any], tensors: Tensors, keep_for_good: bool) -> None:
    checksums = {}
    for group, members in tensors.items():
        path = folder / f"{group}.safetensors"
        save_file(members, path)
        path.chmod(0o644)  # safetensors makes it private
        flush_to_disk(path)
        checksums[path.name] = sha256_of_file(path)
    state = state | {"sha256": checksums}
    write_json(folder / _STATE, state | {"checksum": fingerprint(state)})
    if keep_for_good:
        (folder / _KEEP).touch()
    flush_to_disk(folder)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


# --- the optimiser's tensors ----------------------------------------------------------------


def _parameters_in_order(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's own tensors as 'index.name', index in the order of its groups."""
    return {
        f"{index}.{name}": value.detach()
        for index, parameter in enumerate(_parameters_in_order(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], where: str
) -> None:
    """Give the optimiser copies of the tensors, each on the device where it wants it.

    Raises CheckpointError, naming `where`, for those of another model.
    """
    shapes = [parameter.shape for parameter in _parameters_in_order(optimizer)]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        index = int(number) if number.isdigit() and name else len(shapes)
        # A count of steps has no dimension; all else is as large as its parameter.
        if index >= len(shapes) or (value.ndim and value.shape != shapes[index]):
            wanted = tuple(shapes[index]) if index < len(shapes) else "nothing"
            raise CheckpointError(
                f"{where} does not fit the optimiser: {key} is {tuple(value.shape)} instead of "
                f"{wanted}. It belongs to another model"
            )
        state.setdefault(index, {})[name] = value.clone()
    saved = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
