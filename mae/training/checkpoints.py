"""Checkpoints that are whole, verified, and hold no pickle.

A checkpoint is a folder step-0000123/ with the weights and the optimiser's tensors as
safetensors and state.json, which names the sha256 of both, the step and the run it belongs to.
It is written under a temporary name and renamed, so a folder with the final name is complete.
"""

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mae.errors import CheckpointError
from mae.files import read_json, replacing_folder, sha256_of_file, write_json
from mae.model.artifact import load_weights, save_weights

LOG = logging.getLogger(__name__)

FORMAT = 1
_FILES = ("weights.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Progress:
    """How far a run has come: steps done, and numbers the loop wants back."""

    step: int
    numbers: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in `folder`; the newest `keep` stay."""

    def __init__(self, folder: Path, identity: str, keep: int) -> None:
        self.folder = folder
        self.identity = identity
        self.keep = keep

    def save(self, progress: Progress, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        with replacing_folder(self.folder / f"step-{progress.step:07d}") as temporary:
            save_weights(temporary / _FILES[0], module)
            save_file(_optimizer_tensors(optimizer), temporary / _FILES[1])
            state = {
                "format": FORMAT,
                "identity": self.identity,
                "step": progress.step,
                "numbers": progress.numbers,
                "sha256": {name: sha256_of_file(temporary / name) for name in _FILES},
            }
            write_json(temporary / "state.json", state)
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old)

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Load the newest undamaged checkpoint; None when there is none.

        A damaged one is reported and passed over for the one before it. One of another run or
        of an unknown format is a CheckpointError: it is not ours to pass over.
        """
        for folder in reversed(self._all()):
            fault = self._fault(folder)
            if fault is not None:
                LOG.warning("checkpoint %s is damaged (%s): trying the one before", folder, fault)
                continue
            state = read_json(folder / "state.json")
            self._check_ours(folder, state)
            load_weights(folder / _FILES[0], module)
            _load_optimizer_tensors(optimizer, load_file(folder / _FILES[1]))
            return Progress(int(state["step"]), state["numbers"])
        return None

    def _all(self) -> list[Path]:
        """Return the checkpoint folders, oldest first."""
        if not self.folder.exists():
            return []
        return sorted(f for f in self.folder.iterdir() if re.fullmatch(r"step-\d{7,}", f.name))

    def _fault(self, folder: Path) -> str | None:
        try:
            recorded = read_json(folder / "state.json")["sha256"]
            for name in _FILES:
                if sha256_of_file(folder / name) != recorded[name]:
                    return f"checksum of {name} differs"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return str(error) or type(error).__name__
        return None

    def _check_ours(self, folder: Path, state: dict[str, Any]) -> None:
        if state["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {folder} has format {state['format']} and this version reads "
                f"{FORMAT}: use the version of Maestro that wrote it, or delete the folder"
            )
        if state["identity"] != self.identity:
            raise CheckpointError(
                f"checkpoint {folder} belongs to another run ({state['identity']}, not "
                f"{self.identity}): other parameters or data. Move it away"
            )


def _parameters_in_order(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as 'index.name' -> tensor, index in the order of its groups."""
    return {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, parameter in enumerate(_parameters_in_order(optimizer))
        for name, value in optimizer.state[parameter].items()
    }


def _load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put tensors back; a step counter stays where the optimiser made it, on the CPU or not."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    saved = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
