"""Sums of what the steps of an interval measured, kept on the device until they are logged."""

from typing import Any

import torch
from torch import Tensor

from mae.training.devices import Place


class IntervalSums:
    """Adds scalars up step by step; steps that went wrong count for nothing."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._sums: dict[str, Tensor] = {}
        self._steps: Tensor = torch.zeros((), dtype=torch.float64, device=place.device)

    def add(self, scalars: dict[str, Tensor], good: Tensor | None = None) -> None:
        """scalars: float64 on the device. good: whether the step counts; None for yes."""
        for name, value in scalars.items():
            counted = value if good is None else torch.where(good, value, 0.0)
            self._sums[name] = self._sums[name] + counted if name in self._sums else counted
        self._steps += 1.0 if good is None else good.double()

    def means(self) -> dict[str, float]:
        """Return the means over steps and processes; empty where no step counted."""
        state = self.state()
        if not state["steps"]:
            return {}
        return {name: value / state["steps"] for name, value in state["sums"].items()}

    def state(self) -> dict[str, Any]:
        """Return the sums, averaged over the processes, and the steps that counted."""
        names = sorted(self._sums)
        if not names:
            return {"sums": {}, "steps": 0.0}
        values = torch.stack([*(self._sums[name] for name in names), self._steps])
        shared = (self._place.sum(values) / self._place.world_size).tolist()
        return {"sums": dict(zip(names, shared, strict=False)), "steps": shared[-1]}

    def load(self, state: dict[str, Any]) -> None:
        """Every process carries the mean, so that the next total is again the mean of them."""
        device = self._place.device
        self._sums = {
            name: torch.tensor(value, dtype=torch.float64, device=device)
            for name, value in state["sums"].items()
        }
        self._steps = torch.tensor(state["steps"], dtype=torch.float64, device=device)

    def reset(self) -> None:
        self._sums = {}
        self._steps = torch.zeros_like(self._steps)
