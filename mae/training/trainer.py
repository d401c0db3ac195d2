"""The training loop: next batch -> forward, backward -> update -> journal -> checkpoint.

There is one, and a Task says what it learns. It draws nothing at random that is not a function
of the step, so a run that continues from a checkpoint ends with the weights of a run that was
never interrupted.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from mae.data.loading.batch import prefetch
from mae.errors import DivergedError
from mae.hashing import stream
from mae.params import DivergenceParams, OptimParams, RuntimeParams
from mae.training.average import WeightAverage
from mae.training.devices import AUTOCAST_DTYPE, Place, resolve_precision
from mae.training.distributed import (
    clip,
    collect,
    distribute,
    gradients_stay_local,
    learner,
    parameter_groups,
    total_norm,
)
from mae.training.keeping import Observe, Run, RunKeeper
from mae.training.launch import check_shares
from mae.training.numerics import Numerics, compile_or_say_why_not, settled
from mae.training.schedule import Schedule
from mae.training.sums import IntervalSums
from mae.training.task import Task

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

    With a `run` it is journalled in a folder, checkpointed, continued where it stopped, goes on
    after steps that went wrong, and stops at a signal with its state saved. Without one it runs
    silently, starts afresh, and raises DivergedError when the loss is no longer a number.
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
        title: str = "train",
        numerics: Numerics | None = None,
        run: Run | None = None,
        divergence: DivergenceParams | None = None,
        observe: Observe | None = None,
    ) -> None:
        self.task = task.to(place.device).train()
        self.loader = loader
        self.optim = optim
        self.seed = seed
        self.place = place
        self.runtime = runtime
        self.accumulate = accumulate
        self.title = title
        self.numerics = numerics or Numerics()
        batch = optim.effective_batch(loader.images)
        check_shares(title, batch, place.world_size, accumulate)
        self.schedule = Schedule.from_params(optim, loader.images)
        self.precision = resolve_precision(optim.precision, place.device)
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=self.precision == "fp16")
        static = accumulate == 1 and not self.numerics.compile
        self.model = distribute(task, place, static=static)
        self.learner = learner(self.model)
        groups = parameter_groups(self.model, task, optim.weight_decay)
        self.optimizer = (make_optimizer or adamw())(groups)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        decay = self.numerics.ema
        self.average = None if decay is None else WeightAverage(self.learner, decay)
        self.sums = IntervalSums(place)
        self.keeper = None if run is None else RunKeeper(self, run, divergence, observe)

    def run(self) -> None:
        """Train to the last step. Raises Interrupted (state saved) or DivergedError.

        The task ends in evaluation mode, with the averaged weights where they are averaged.
        """
        with settled(self.numerics), self.keeper or nullcontext():
            done = self.keeper.begin() if self.keeper else 0
            try:
                while done < self.schedule.total:
                    done = self._train_from(done)
                if self.keeper:
                    self.keeper.finish()
                if self.average:
                    self.average.adopt()
                collect(self.model, self.task)
            finally:
                # What exchanges gradients must go before the process group does: were it to hold
                # the last reference, gloo's threads would be joined under the interpreter's lock
                # that they wait for, and the process would never end.
                self.model = self.task
        self.task.eval()

    def _train_from(self, start: int) -> int:
        """Train on from `start` steps done; return the steps done at the end, or fewer where the
        run has to go back."""
        batches = prefetch(self.loader.batches(start, self.schedule.total), self.place.device)
        try:
            for done, batch in enumerate(batches, start + 1):
                if done == start + 1:
                    self._prepare(batch, self.loader.epoch_of(start))
                self._train_step(done - 1, batch)
                if self.keeper is None:
                    self._demand_finite(done)
                elif (back_to := self.keeper.after_step(done)) is not None:
                    return back_to
        finally:
            batches.close()
        return self.schedule.total

    def _prepare(self, batch: Any, epoch: int) -> None:
        part = self._parts(batch)[0]
        if self.keeper:
            self.keeper.count_flops(part, epoch)
        if self.numerics.compile:
            with self._autocast():
                compile_or_say_why_not(self.learner, part, epoch)

    # --- one step ---------------------------------------------------------------------------

    def _train_step(self, step: int, batch: Any) -> None:
        self._seed_generator(step)
        epoch = self.loader.epoch_of(step)
        parts = self._parts(batch)
        scalars: dict[str, Tensor] = {}
        for index, part in enumerate(parts):
            with gradients_stay_local(self.model, index + 1 < len(parts)):
                self._forward_backward(part, epoch, len(parts), scalars)
        self._update(step, scalars)
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(step)

    def _seed_generator(self, step: int) -> None:
        """Dropout-like layers draw from torch's generator: make that a function of the step too."""
        seed = stream(self.seed, f"{self.title}:{self.place.rank}", step) >> 1
        # torch.manual_seed looks for every kind of device at each call, which takes its time.
        torch.default_generator.manual_seed(seed)
        if self.place.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _forward_backward(
        self, batch: Any, epoch: int, parts: int, scalars: dict[str, Tensor]
    ) -> None:
        """Add the gradient of a micro-batch to the parameters', what it measured to `scalars`."""
        with self._autocast():
            loss, measured = self.model(batch, epoch)
        self.scaler.scale(loss / parts).backward()
        for name, value in {"loss": loss, **measured}.items():
            part = value.detach().double() / parts
            scalars[name] = scalars[name] + part if name in scalars else part

    def _update(self, step: int, scalars: dict[str, Tensor]) -> None:
        factor = 1.0 if self.keeper is None else self.keeper.lr_factor
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr(step) * group["lr_scale"] * factor
        if self.scaler.is_enabled():
            self._update_scaled(step, scalars)
            return
        norm = None
        if self.keeper or self.optim.clip_grad is not None:
            norm = total_norm(self.parameters)
        bad = self.keeper.judge(step, scalars["loss"], norm) if self.keeper else None
        self._clip(norm)
        if bad is not None:
            self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self._add(scalars, norm, bad)

    def _update_scaled(self, step: int, scalars: dict[str, Tensor]) -> None:
        """fp16: an overflowing gradient is the scaler's everyday business, and no bad step."""
        bad = self.keeper.judge(step, scalars["loss"], None) if self.keeper else None
        if bad is not None:
            # The scaler leaves out a step whose gradients hold anything that is not finite.
            first = next(p.grad for p in self.parameters if p.grad is not None)
            first.mul_(torch.where(bad > 0, math.nan, 1.0))
        self.scaler.unscale_(self.optimizer)
        norm = total_norm(self.parameters)
        self._clip(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._add(scalars, None, bad)

    def _clip(self, norm: Tensor | None) -> None:
        if norm is not None and self.optim.clip_grad is not None:
            clip(self.parameters, norm, self.optim.clip_grad)

    def _add(self, scalars: dict[str, Tensor], norm: Tensor | None, bad: Tensor | None) -> None:
        if norm is not None:
            scalars = {**scalars, "grad_norm": norm.double()}
        self.sums.add(scalars, None if bad is None else bad == 0)

    def _demand_finite(self, done: int) -> None:
        if done % self.runtime.log_every and done < self.schedule.total:
            return
        means = self.sums.means()
        self.sums.reset()
        if not all(map(math.isfinite, means.values())):
            raise DivergedError(
                f"{self.title}: the loss became {means['loss']} before step {done}. Lower the "
                "learning rate (blr), lengthen warm-up, or use precision bf16 or fp32"
            )

    # --- batches ----------------------------------------------------------------------------

    def _parts(self, batch: Any) -> list[Any]:
        return batch.split(self.accumulate) if self.accumulate > 1 else [batch]

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST_DTYPE[self.precision]
        return torch.autocast(self.place.device.type, dtype, enabled=dtype is not None)
