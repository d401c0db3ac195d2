"""An exponential moving average of the weights, which evaluates better than the last ones do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mae.training.distributed import divided_like, whole_tensors


class WeightAverage:
    """average <- decay x average + (1 - decay) x weights, after every step.

    The decay starts lower, at (1 + step) / (10 + step), so that the average does not remember
    the initial weights for long.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.tensors: dict[str, Tensor] = {
            name: weight.detach().clone() for name, weight in self._weights.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._weights.values()), 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Return the average as whole tensors; collective where the weights are sharded."""
        return whole_tensors(self.tensors)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(divided_like(tensor, tensors[name]))

    @torch.no_grad()
    def adopt(self) -> None:
        """Make the average the weights, and the weights the average."""
        for name, weight in self._weights.items():
            kept = weight.detach().clone()
            weight.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the module has the averaged weights."""
        self.adopt()
        try:
            yield
        finally:
            self.adopt()
