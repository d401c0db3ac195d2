"""Steps that went wrong: noticed on the device, left out, and counted by the host a little later.

A step is bad where its loss or gradient is not finite, or its loss is far above those of the last
steps. Every process judges the same numbers, so all agree. The optimiser is told through
`found_inf`, a number on the device that turns its update into nothing, so no step waits for the
host to look.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mae.params import DivergenceParams

_WINDOW = 128  # good steps whose losses say what is usual
_FEWEST = 32  # before so many no loss is called a spike
_REFRESH = 16  # steps between two looks at the window
_USUAL = 0.95  # the quantile of the window that a spike is a multiple of


@dataclass(frozen=True)
class StepSigns:
    """What is known of a bad step, counted from 0. loss: the mean of all processes; own_loss: of
    this one; faulty_processes: how many had a loss that was not finite."""

    step: int
    loss: float
    own_loss: float
    gradient_norm: float
    limit: float
    faulty_processes: int


class Watch:
    """Judges each step by the mean loss of all processes and the norm of the whole gradient."""

    def __init__(self, params: DivergenceParams, device: torch.device) -> None:
        self.params = params
        self._losses = torch.full((_WINDOW,), math.nan, device=device)
        self.limit = torch.full((), math.inf, device=device)

    def judge(self, step: int, loss: Tensor, norm: Tensor | None) -> Tensor:
        """Return whether the step is bad, a float32 scalar 0 or 1 on the device.

        loss, norm: float32 scalars; norm None: the gradient is judged elsewhere.
        """
        if self.params.spike is not None and step % _REFRESH == 0:
            self._refresh(self.params.spike)
        good = torch.isfinite(loss) & (loss <= self.limit)
        if norm is not None:
            good = good & torch.isfinite(norm)
        place = self._losses[step % _WINDOW]
        place.copy_(torch.where(good, loss, place))
        return 1.0 - good.float()

    def start_again(self) -> None:
        """Forget what was usual."""
        self._losses.fill_(math.nan)
        self.limit.fill_(math.inf)

    def state(self) -> dict[str, Any]:
        """Return what `load` needs, in numbers that JSON keeps exactly."""
        return {
            "losses": [None if math.isnan(loss) else loss for loss in self._losses.tolist()],
            "limit": None if math.isinf(limit := float(self.limit)) else limit,
        }

    def load(self, state: dict[str, Any]) -> None:
        losses = [math.nan if loss is None else loss for loss in state["losses"]]
        self._losses.copy_(torch.tensor(losses))
        self.limit.fill_(math.inf if state["limit"] is None else state["limit"])

    def _refresh(self, spike: float) -> None:
        known = (~self._losses.isnan()).sum() >= _FEWEST
        usual = torch.nanquantile(self._losses, _USUAL)
        self.limit.copy_(torch.where(known, usual * spike, math.inf))


class LateReader:
    """Takes numbers from the device `lag` steps after they were made.

    By then a GPU has computed them, so reading does not make it wait for the host. On a CPU they
    are there at once, and the lag is 0.
    """

    def __init__(self, device: torch.device) -> None:
        self._lag = 2 if device.type == "cuda" else 0
        self._cuda = device.type == "cuda"
        self._waiting: deque[tuple[int, Tensor, Any]] = deque()

    def push(self, step: int, numbers: Tensor) -> None:
        event = None
        if self._cuda:
            numbers = numbers.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((step, numbers, event))

    def due(self, everything: bool = False) -> Iterator[tuple[int, list[float]]]:
        """Yield (step, numbers) of the steps whose time has come."""
        while len(self._waiting) > (0 if everything else self._lag):
            step, numbers, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            yield step, numbers.tolist()

    def forget(self) -> None:
        self._waiting.clear()
