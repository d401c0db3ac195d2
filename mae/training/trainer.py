"""The training loop: next batch -> forward, backward -> update -> journal -> checkpoint.

There is one, and a Task says what it learns. It draws nothing at random that is not a function
of the step, so a run that continues from a checkpoint ends with the weights of a run that was
never interrupted.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mae.data.loading.batch import prefetch
from mae.errors import DivergedError, Interrupted, ParamsError
from mae.hashing import stream
from mae.params import OptimParams, RuntimeParams
from mae.training.checkpoints import Checkpoints, Progress
from mae.training.devices import AUTOCAST_DTYPE, Place, resolve_precision
from mae.training.interrupts import Interrupts
from mae.training.journal import Journal
from mae.training.schedule import Schedule
from mae.training.task import Task

LOG = logging.getLogger(__name__)

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class Loader(Protocol):
    """A source of batches addressed by step: the same step always gives the same batch."""

    images: int

    @property
    def wait_seconds(self) -> float: ...

    def epoch_of(self, step: int) -> int: ...

    def batches(self, start: int, stop: int) -> Iterator[Any]: ...


def adamw(betas: tuple[float, float] = (0.9, 0.999)) -> MakeOptimizer:
    """Return a maker of AdamW with torch's fused update."""
    return lambda groups: torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


class Trainer:
    """Trains a task to the end of its schedule, on this process's part of every batch.

    With a `folder` the run is journalled there, checkpointed, continued where it stopped, and
    stops at a signal with its state saved; without one it runs silently and starts afresh.
    """

    def __init__(
        self,
        task: Task,
        loader: Loader,
        optim: OptimParams,
        *,
        seed: int,
        place: Place,
        runtime: RuntimeParams,
        make_optimizer: MakeOptimizer | None = None,
        accumulate: int = 1,
        folder: Path | None = None,
        identity: str = "",
        title: str = "train",
    ) -> None:
        self.task = task.to(place.device).train()
        self.loader = loader
        self.optim = optim
        self.seed = seed
        self.place = place
        self.runtime = runtime
        self.accumulate = accumulate
        self.folder = folder
        self.title = title
        self._check_batch()
        self.schedule = Schedule.from_params(optim, loader.images)
        make_optimizer = make_optimizer or adamw()
        self.optimizer = make_optimizer(self.task.parameter_groups(optim.weight_decay))
        self.precision = resolve_precision(optim.precision, place.device)
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=self.precision == "fp16")
        self.checkpoints: Checkpoints | None = None
        if folder is not None:
            self.checkpoints = Checkpoints(
                folder / "checkpoints", identity, runtime.keep_checkpoints
            )
        self.model = self._distributed()
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        self._interval_started = self._last_saved = time.monotonic()
        self._waited = 0.0

    def run(self) -> None:
        """Train to the last step. Raises Interrupted (state saved) or DivergedError."""
        start = self._restore()
        total = self.schedule.total
        journal = Journal(self.folder if self.place.leads else None, self.title, start, total)
        batches = prefetch(self.loader.batches(start, total), self.place.device)
        self._interval_started = self._last_saved = time.monotonic()
        try:
            with Interrupts() if self.folder else nullcontext() as interrupts:
                for done, batch in enumerate(batches, start + 1):
                    self._train_step(done - 1, batch)
                    journal.advance()
                    if done % self.runtime.log_every == 0 or done == total:
                        self._log(done, journal)
                    self._checkpoint_if_due(done, journal, interrupts)
        finally:
            batches.close()
            journal.close()
            # What exchanges gradients must go before the process group does: were it to hold the
            # last reference, gloo's threads would be joined under the interpreter's lock that
            # they wait for, and the process would never end.
            self.model = self.task
        self.task.eval()

    # --- one step ---------------------------------------------------------------------------

    def _train_step(self, step: int, batch: Any) -> None:
        # Dropout-like layers draw from torch's generator: make that a function of the step too.
        torch.manual_seed(stream(self.seed, f"{self.title}:{self.place.rank}", step) >> 1)
        epoch = self.loader.epoch_of(step)
        parts = batch.split(self.accumulate) if self.accumulate > 1 else [batch]
        for index, part in enumerate(parts):
            with self._gradients_stay_local(index + 1 < len(parts)):
                self._forward_backward(part, epoch, len(parts))
        self._update(self.schedule.lr(step))
        self._summed += 1

    def _forward_backward(self, batch: Any, epoch: int, parts: int) -> None:
        dtype = AUTOCAST_DTYPE[self.precision]
        with torch.autocast(self.place.device.type, dtype, enabled=dtype is not None):
            loss, scalars = self.model(batch, epoch)
        self.scaler.scale(loss / parts).backward()
        for name, value in {"loss": loss, **scalars}.items():
            part = value.detach().double() / parts
            self._sums[name] = self._sums[name] + part if name in self._sums else part

    def _update(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        if self.optim.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.task.parameters(), self.optim.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    # --- journal ----------------------------------------------------------------------------

    def _log(self, done: int, journal: Journal) -> None:
        means = {name: value / self._summed for name, value in self._totals().items()}
        if not all(map(math.isfinite, means.values())):
            raise DivergedError(
                f"{self.title}: the loss became {means['loss']} before step {done}. Lower the "
                "learning rate (blr), lengthen warm-up, or use precision bf16 or fp32"
            )
        now = time.monotonic()
        seconds = max(now - self._interval_started, 1e-9)
        line = {
            "step": done,
            "epoch": self.loader.epoch_of(done - 1),
            "lr": self.schedule.lr(done - 1),
            **means,
            "images_per_second": self._summed
            * self.optim.effective_batch(self.loader.images)
            / seconds,
            "wait_share": (self.loader.wait_seconds - self._waited) / seconds,
        }
        journal.write(line)
        self._interval_started, self._waited = now, self.loader.wait_seconds
        self._sums, self._summed = {}, 0

    def _totals(self) -> dict[str, float]:
        """Return the sums of the interval, averaged over the processes."""
        return {
            name: float(self.place.sum(value.clone())) / self.place.world_size
            for name, value in sorted(self._sums.items())
        }

    # --- checkpoints ------------------------------------------------------------------------

    def _checkpoint_if_due(
        self, done: int, journal: Journal, interrupts: Interrupts | None
    ) -> None:
        if self.checkpoints is None or interrupts is None:
            return
        last = done == self.schedule.total
        minutes = (time.monotonic() - self._last_saved) / 60
        late = minutes >= self.runtime.checkpoint_minutes
        # Processes must agree on when to save; asking each other at every step would cost more
        # than it saves, so several of them ask once an interval.
        asks = self.place.world_size == 1 or done % self.runtime.log_every == 0 or last
        if not asks:
            return
        wishes = torch.tensor([float(late), float(interrupts.received is not None)])
        late, interrupted = (self.place.sum(wishes.to(self.place.device)) > 0).tolist()
        if late or interrupted or last:
            self._save(done, journal)
        if interrupted and not last:
            raise Interrupted(
                f"{self.title}: stopped by a signal at step {done} of {self.schedule.total}, "
                "state saved: run the same command again to continue"
            )

    def _save(self, done: int, journal: Journal) -> None:
        totals = self._totals()
        if not all(map(math.isfinite, totals.values())):
            return  # the next log line says so; the last good checkpoint stays the newest
        if self.place.leads and self.checkpoints is not None:
            journal.flush()
            numbers = {
                "sums": totals,
                "summed": self._summed,
                "scaler": self.scaler.state_dict(),
            }
            self.checkpoints.save(Progress(done, numbers), self.task, self.optimizer)
        self.place.wait_for_all()
        self._last_saved = time.monotonic()

    def _restore(self) -> int:
        """Load the newest checkpoint, if any, and return the number of steps done."""
        progress = self.checkpoints and self.checkpoints.restore(self.task, self.optimizer)
        if not progress:
            return 0
        if self.place.leads:
            LOG.info("%s: continues after step %d", self.title, progress.step)
        numbers = progress.numbers
        self.scaler.load_state_dict(numbers["scaler"])
        self._summed = numbers["summed"]
        # Every process carries the mean, so that the next total is again the mean of them.
        self._sums = {
            name: torch.tensor(value, dtype=torch.float64, device=self.place.device)
            for name, value in numbers["sums"].items()
        }
        return progress.step

    # --- processes --------------------------------------------------------------------------

    def _distributed(self) -> torch.nn.Module:
        if self.place.world_size == 1:
            return self.task
        ids = [self.place.device.index] if self.place.device.type == "cuda" else None
        return DistributedDataParallel(self.task, device_ids=ids, broadcast_buffers=False)

    def _gradients_stay_local(self, more_to_come: bool) -> Any:
        """Between micro-batches gradients are not exchanged: only the last one's sum is."""
        if more_to_come and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _check_batch(self) -> None:
        batch = self.optim.effective_batch(self.loader.images)
        share = self.place.world_size * self.accumulate
        if batch % share:
            raise ParamsError(
                f"{self.title}: a batch of {batch} images cannot be cut into "
                f"{self.place.world_size} processes x {self.accumulate} micro-batches: "
                f"choose a multiple of {share}"
            )
