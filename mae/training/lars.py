"""LARS (arXiv 1708.03888) as MAE's linear probe uses it: layer-wise scaled momentum SGD."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step on each matrix is scaled to `trust` x |weights| / |gradient|.

    One-dimensional parameters get plain momentum SGD without weight decay. found_inf: a float
    tensor that whoever drives the optimiser may set; where it is 1 a step changes nothing, momentum
    included, and the device is not asked, as in torch's fused optimisers.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "LARS takes no closure"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if parameter.ndim > 1:
            if group["weight_decay"]:
                gradient = gradient + group["weight_decay"] * parameter
            weights, slope = parameter.norm(), gradient.norm()
            scaled = group["trust"] * weights / slope
            gradient = gradient * torch.where((weights > 0) & (slope > 0), scaled, 1.0)
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = torch.add(gradient, state["momentum"], alpha=group["momentum"])
        moved = torch.add(parameter, momentum, alpha=-group["lr"])
        if self.found_inf is not None:
            bad = self.found_inf.to(parameter.device).bool()
            momentum = torch.where(bad, state["momentum"], momentum)
            moved = torch.where(bad, parameter, moved)
        state["momentum"].copy_(momentum)
        parameter.copy_(moved)
