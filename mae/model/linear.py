"""A linear layer that picks the faster of torch's matrix products for the processor."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Linear(nn.Linear):
    """nn.Linear, with the same weights and names. In float32 it differs by rounding alone."""

    def forward(self, input: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and _mkl_is_slow() and _plain_float32(input):
            return _OneDnnLinear.apply(input, self.weight, self.bias)
        return super().forward(input)


@cache
def _mkl_is_slow() -> bool:
    """Whether float32 products go to MKL though oneDNN is about twice as fast.

    MKL keeps AMD processors to 256-bit arithmetic; oneDNN, which torch uses for bf16 anyway,
    takes their AVX-512. Decided by the processor and not by a clock, so that the same machine
    always gives the same bits.
    """
    capabilities = torch.cpu.get_capabilities()
    amd = "AMD" in str(capabilities.get("cpu_name", ""))
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return amd and bool(capabilities.get("avx512_f")) and libraries


def _plain_float32(x: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    return on_cpu and not torch.is_autocast_enabled("cpu")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _weight_gradient(rows: Tensor, outputs: Tensor) -> Tensor:
    """Return outputs.T @ rows. oneDNN copies its first factor here: let that be the smaller one.

    The result of the other order has to be turned, which costs as much as the weights have.
    """
    if outputs.numel() > rows.numel() + rows.shape[1] * outputs.shape[1]:
        return _product(rows.mT, outputs.mT).mT
    return _product(outputs.mT, rows.mT)


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, outputs = x.flatten(0, -2), gradient.flatten(0, -2)
        return (
            _product(gradient, weight.mT) if ctx.needs_input_grad[0] else None,
            _weight_gradient(rows, outputs),
            outputs.sum(dim=0) if ctx.needs_input_grad[2] else None,
        )
