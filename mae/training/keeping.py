"""What the loop keeps of a run in its folder, and what it does when something happens to it:
journal, checkpoints, observation, steps that went wrong, signals."""

import logging
import math
import os
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mae.errors import DivergedError, Interrupted
from mae.files import write_json
from mae.params import DivergenceParams
from mae.training.checkpoints import Checkpoints, Progress, Restored
from mae.training.devices import AUTOCAST_DTYPE
from mae.training.distributed import collected, full_state, load_full_state
from mae.training.divergence import LateReader, StepSigns, Watch
from mae.training.flops import flops_per_image, matrix_rate
from mae.training.incidents import Incidents, reason
from mae.training.interrupts import Interrupts
from mae.training.journal import Journal

if TYPE_CHECKING:
    from mae.training.trainer import Trainer

LOG = logging.getLogger(__name__)

Observe = Callable[[int], dict[str, float]]
"""Steps done -> what was observed; called on every process, with the weights in the task."""

_NOTHING = DivergenceParams(spike=None, patience=1, backoff=1.0, give_up=0)


@dataclass(frozen=True)
class Run:
    """Where a run is kept, and which: a checkpoint of another identity is refused."""

    folder: Path
    identity: str


class RunKeeper:
    """Keeps one trainer's run. Entered, it takes signals; left, it has closed its files."""

    def __init__(
        self,
        trainer: "Trainer",
        run: Run,
        divergence: DivergenceParams | None,
        observe: Observe | None,
    ) -> None:
        self._trainer = trainer
        self._run = run
        self._place = trainer.place
        self._runtime = trainer.runtime
        self._divergence = divergence or _NOTHING
        self._observe = observe
        self._checkpoints = Checkpoints(
            run.folder / "checkpoints", run.identity, self._runtime.keep_checkpoints
        )
        self._watch = Watch(self._divergence, self._place.device)
        self._reader = LateReader(self._place.device)
        self._incidents = Incidents(run.folder, self._place.rank)
        self._interrupts = Interrupts()
        self._journal: Journal | None = None
        self.lr_factor = 1.0
        self._returns = self._streak = 0
        self._stop = self._late = False
        self._flops = self._rate = 0.0
        self._interval_started = self._last_saved = time.monotonic()
        self._waited = 0.0

    def __enter__(self) -> "RunKeeper":
        self._interrupts.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpoints.join()
        self._interrupts.__exit__()
        if self._journal is not None:
            self._journal.close()

    # --- begin and end ----------------------------------------------------------------------

    def begin(self) -> int:
        """Continue from the newest checkpoint, if any, and return the number of steps done."""
        trainer, total = self._trainer, self._trainer.schedule.total
        restored = None
        # What is damaged is set aside by the first, and not seen by the others.
        for leading in (True, False):
            if self._place.leads is leading:
                restored = self._checkpoints.restore()
            self._place.wait_for_all()
        done = 0 if restored is None else self._take(restored)
        if self._place.leads and done:
            LOG.info("%s: continues after step %d of %d", trainer.title, done, total)
        if self._place.leads:
            self._describe()
        self._journal = Journal(
            self._run.folder,
            trainer.title,
            done,
            total,
            rank=self._place.rank,
            trackers=self._runtime.trackers,
        )
        if restored is None and self._divergence.give_up:
            self._save(0)  # to have somewhere to go back to
        self._interval_started = self._last_saved = time.monotonic()
        return done

    def finish(self) -> None:
        """Raise CheckpointError if the last state could not be written."""
        if self._place.leads:
            self._checkpoints.wait()
        self._place.wait_for_all()

    def count_flops(self, batch: Any, epoch: int) -> None:
        """Count what an image costs, and measure what the device could do, once."""
        if self._rate:
            return
        self._flops = flops_per_image(self._trainer.model, batch, epoch)
        dtype = AUTOCAST_DTYPE[self._trainer.precision] or torch.float32
        self._rate = matrix_rate(self._place.device, dtype)
        self._interval_started = time.monotonic()

    # --- in a step --------------------------------------------------------------------------

    def judge(self, step: int, loss: Tensor, norm: Tensor | None) -> Tensor:
        """Return whether the step is bad, the same 0 or 1 on the device of every process.

        loss: of this process, float64. One exchange carries it and this process's wishes.
        """
        asked = self._interrupts.received is not None
        faulty = (~torch.isfinite(loss)).double()
        wishes = torch.tensor([float(asked), float(self._is_late())], dtype=torch.float64)
        wishes = wishes.to(self._place.device, non_blocking=True)
        # A loss that is no number would make the mean one whoever it came from; so would inf.
        shared = torch.cat([(loss / self._place.world_size)[None], faulty[None], wishes])
        shared = self._place.sum(shared)
        mean = shared[0].float()
        bad = self._watch.judge(step, mean, norm)
        measured = norm if norm is not None else torch.zeros_like(mean)
        own = torch.stack([bad, mean, loss.float(), measured.float(), self._watch.limit])
        self._reader.push(step, torch.cat([own.double(), shared[1:]]))
        return bad

    def _is_late(self) -> bool:
        minutes = (time.monotonic() - self._last_saved) / 60
        return minutes >= self._runtime.checkpoint_minutes

    # --- after a step -----------------------------------------------------------------------

    def after_step(self, done: int) -> int | None:
        """Do what is due; return the step to go on from where the run has to go back."""
        assert self._journal is not None
        self._journal.advance()
        last = done == self._trainer.schedule.total
        self._read_signs(last or self._ends_epochs(done, self._runtime.keep_every_epochs))
        if done % self._runtime.log_every == 0 or last:
            self._log(done)
        if self._streak >= self._divergence.patience or (last and not self._is_sound()):
            return self._go_back(done)
        if self._ends_epochs(done, self._runtime.observe.every_epochs) or (last and done):
            self._look(done)
        self._save_if_due(done, last)
        return None

    def _ends_epochs(self, done: int, epochs: int | None) -> bool:
        """Whether the last step ended an epoch that is a multiple of `epochs`."""
        if not epochs:
            return False
        epoch = self._trainer.loader.epoch_of(done)
        return epoch != self._trainer.loader.epoch_of(done - 1) and epoch % epochs == 0

    def _log(self, done: int) -> None:
        assert self._journal is not None
        trainer = self._trainer
        means = trainer.sums.means()
        trainer.sums.reset()
        now, waited = time.monotonic(), trainer.loader.wait_seconds
        seconds = max(now - self._interval_started, 1e-9)
        steps = (done - 1) % self._runtime.log_every + 1
        batch = trainer.optim.effective_batch(trainer.loader.images)
        rate = steps * batch / seconds
        if means:
            self._journal.write(
                {
                    "step": done,
                    "epoch": trainer.loader.epoch_of(done - 1),
                    "lr": trainer.schedule.lr(done - 1) * self.lr_factor,
                    **means,
                    "images_per_second": rate,
                    "wait_share": (waited - self._waited) / seconds,
                    "flop_utilisation": self._utilisation(rate),
                    "peak_memory_mb": _peak_memory_mb(self._place.device),
                    "seconds": seconds,
                }
            )
        self._interval_started, self._waited = now, waited

    def _utilisation(self, images_per_second: float) -> float | None:
        if not self._flops or not self._rate:
            return None
        return self._flops * images_per_second / (self._rate * self._place.world_size)

    def _look(self, done: int) -> None:
        assert self._journal is not None
        trainer = self._trainer
        if self._observe is None or not self._runtime.observe.every_epochs:
            return
        averaged = trainer.average.in_place() if trainer.average else nullcontext()
        with averaged, collected(trainer.model, trainer.task):
            values = self._observe(done)
        self._journal.observed(done, values)

    # --- steps that went wrong --------------------------------------------------------------

    def _read_signs(self, everything: bool) -> None:
        for step, numbers in self._reader.due(everything):
            bad, loss, own, norm, limit, faulty, asked, late = numbers
            self._stop |= asked > 0
            self._late |= late > 0
            if not bad:
                self._streak = 0
                continue
            self._streak += 1
            self._report(StepSigns(step, loss, own, norm, limit, round(faulty)))

    def _report(self, signs: StepSigns) -> None:
        assert self._journal is not None
        kept = None
        if not signs.faulty_processes or not math.isfinite(signs.own_loss):
            loader = self._trainer.loader
            if self._incidents.has_room:
                [batch] = loader.batches(signs.step, signs.step + 1)
                kept = self._incidents.keep(signs, loader.epoch_of(signs.step), batch)
        if self._place.leads:
            LOG.warning("step %d is left out: %s", signs.step + 1, reason(signs))
        where = str(kept or self._incidents.folder)
        self._journal.event(signs.step + 1, "skipped", reason=reason(signs), folder=where)

    def _go_back(self, done: int) -> int:
        """Load the last good state, to go on from there at a lower rate."""
        assert self._journal is not None
        lr_factor, returns = self.lr_factor * self._divergence.backoff, self._returns + 1
        said = (
            f"{self._trainer.title}: {self._streak} steps on end went wrong before step {done}; "
            f"the images are in {self._incidents.folder}"
        )
        if returns > self._divergence.give_up:
            self._journal.event(done, "diverged", reason=said)
            raise DivergedError(
                f"{said}. Gave up after {self._divergence.give_up} returns to an earlier state. "
                "Lower the learning rate (blr), lengthen warm-up, set clip_grad, use precision "
                "bf16 or fp32, or look at these images"
            )
        if self._place.leads:
            self._checkpoints.join()
        self._place.wait_for_all()
        # Where states from before the bad steps are gone, one from among them is better than none.
        checkpoints = self._checkpoints
        restored = checkpoints.before(done - self._streak) or checkpoints.before(done)
        if restored is None:
            raise DivergedError(f"{said}. There is no earlier state to go back to")
        step = self._take(restored)
        self.lr_factor, self._returns, self._streak = lr_factor, returns, 0
        self._watch.start_again()
        self._reader.forget()
        if self._place.leads:
            LOG.warning("%s. Goes back to step %d, at %g of the rate", said, step, lr_factor)
            self._checkpoints.discard_after(step)
        self._journal.rewind(step)
        self._journal.event(step, "rewound", diverged_at=done, lr_factor=lr_factor, reason=said)
        self._save(step)
        return step

    def _is_sound(self) -> bool:
        """Whether every weight is a finite number."""
        norms = torch._foreach_norm([_local(p) for p in self._trainer.parameters])
        faults = (~torch.isfinite(torch.stack(norms))).sum().double()
        return float(self._place.sum(faults)) == 0

    # --- checkpoints ------------------------------------------------------------------------

    def _save_if_due(self, done: int, last: bool) -> None:
        if self._place.world_size == 1:
            # Nobody else to agree with.
            self._stop = self._interrupts.received is not None
            self._late = self._is_late()
        stop = self._stop
        for_good = self._ends_epochs(done, self._runtime.keep_every_epochs)
        # While steps go wrong the last states before them stay the newest.
        if stop or (self._late and not self._streak) or last or for_good:
            self._save(done, for_good)
        if stop and not last:
            self._leave(done)

    def _leave(self, done: int) -> None:
        assert self._journal is not None
        self._journal.event(done, "interrupted")
        self.finish()
        raise Interrupted(
            f"{self._trainer.title}: stopped by a signal at step {done} of "
            f"{self._trainer.schedule.total}, state saved: run the same command again to continue"
        )

    def _save(self, done: int, for_good: bool = False) -> None:
        assert self._journal is not None
        self._read_signs(everything=True)  # what goes into the state must be known
        self._late = False
        self._last_saved = time.monotonic()
        if not self._is_sound():
            return  # the last good checkpoint stays the newest
        trainer = self._trainer
        numbers = {
            "interval": trainer.sums.state(),
            "scaler": trainer.scaler.state_dict(),
            "watch": self._watch.state(),
            "lr_factor": self.lr_factor,
            "returns": self._returns,
            "streak": self._streak,
        }
        weights, optimizer = full_state(trainer.learner, trainer.optimizer)
        tensors = {"weights": weights, "optimizer": optimizer}
        if trainer.average is not None:
            tensors["average"] = trainer.average.state()
        self._journal.flush()
        if self._place.leads:
            self._checkpoints.save(Progress(done, numbers), tensors, keep_for_good=for_good)

    def _take(self, restored: Restored) -> int:
        """Load a checkpoint and return its number of steps done."""
        trainer, numbers = self._trainer, restored.progress.numbers
        tensors = restored.tensors
        where = str(restored.folder)
        load_full_state(
            trainer.learner, trainer.optimizer, tensors["weights"], tensors["optimizer"], where
        )
        if trainer.average is not None:
            trainer.average.load(tensors["average"])
        trainer.scaler.load_state_dict(numbers["scaler"])
        trainer.sums.load(numbers["interval"])
        self._watch.load(numbers["watch"])
        self.lr_factor, self._returns = numbers["lr_factor"], numbers["returns"]
        self._streak = numbers["streak"]
        return restored.progress.step

    def _describe(self) -> None:
        """Say in run.json what `mae runs` cannot see in the journal."""
        trainer, loader = self._trainer, self._trainer.loader
        steps = trainer.optim.steps_per_epoch(loader.images)
        content = {
            "title": trainer.title,
            "total": trainer.schedule.total,
            "steps_per_epoch": steps,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self._run.folder / "run.json", content)


def _local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, or the tensor itself."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _peak_memory_mb(device: torch.device) -> float:
    """Return the most memory held so far, in MB: the device's, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
