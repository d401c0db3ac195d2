"""What is kept of a step that went wrong: which images, what they held, what was measured."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from mae.files import replacing_folder, write_json
from mae.training.divergence import StepSigns

LOG = logging.getLogger(__name__)

KEPT = 20  # incidents kept with their batch; of a run that goes wrong all the time no more


class Incidents:
    """The folder `incidents/` of a run, with step-0000123-rank-0/ for what a process saw there.

    report.json holds the step, the reason, the numbers and the ids of the images;
    batch.safetensors the batch as it came from the loader, of the processes whose loss was not
    finite, or of all where it was the gradient or a spike.
    """

    def __init__(self, run: Path, rank: int) -> None:
        self.folder = run / "incidents"
        self._rank = rank

    @property
    def has_room(self) -> bool:
        return len(list(self.folder.glob(f"step-*-rank-{self._rank}"))) < KEPT

    def keep(self, signs: StepSigns, epoch: int, batch: Any) -> Path | None:
        """Write down an incident, and return where; None where the disk is full, said in the log.

        batch: a dataclass whose tensors are written.
        """
        target = self.folder / f"step-{signs.step:07d}-rank-{self._rank}"
        if target.exists():
            return target
        tensors = _tensors(batch)
        ids = tensors.get("ids")
        report = {
            "step": signs.step,
            "epoch": epoch,
            "reason": reason(signs),
            "loss": str(signs.loss),
            "loss_of_this_process": str(signs.own_loss),
            "gradient_norm": str(signs.gradient_norm),
            "limit": str(signs.limit),
            "ids": None if ids is None else ids.tolist(),
        }
        try:
            with replacing_folder(target) as temporary:
                save_file(tensors, temporary / "batch.safetensors")
                write_json(temporary / "report.json", report)
        except OSError as error:
            LOG.warning("cannot keep the batch of step %d in %s: %s", signs.step, target, error)
            return None
        return target


def reason(signs: StepSigns) -> str:
    """Return in words why the step was left out."""
    if signs.faulty_processes:
        return f"the loss became {signs.loss} (in {signs.faulty_processes} of the processes)"
    if signs.loss > signs.limit:
        return f"the loss of {signs.loss:.4g} is above {signs.limit:.4g}"
    return f"the norm of the gradient became {signs.gradient_norm}"


def _tensors(batch: Any) -> dict[str, Tensor]:
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {
        name: value.detach().cpu().contiguous()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
