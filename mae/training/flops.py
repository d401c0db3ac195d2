"""How much arithmetic a training step is, and how fast a device does arithmetic at best."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mae.model.linear import Linear

# Products that the counter does not know by itself, and would count as nothing; not every build
# of torch has the second.
_UNKNOWN_TO_TORCH = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    getattr(torch.ops.mkldnn, "_linear_pointwise", None): (
        lambda x, weight, *_, out_shape, **__: 2 * out_shape.numel() * weight[1]
    ),
}

_SMALLEST, _LARGEST = 256, 8192  # sides of the matrices that a rate is measured with
_LONG_ENOUGH = 0.004  # seconds of a product, beside which the clock and the call are nothing
_SECONDS = 0.15  # of all measured products together, about


def flops_per_image(task: nn.Module, batch: Any, epoch: int) -> float:
    """Return the floating-point operations of training on one image of the batch.

    The matrix products, convolutions and attention of one forward pass are counted, two
    operations for each multiplication with its addition, and taken three times: the backward pass
    forms a gradient by both factors of each product. These are the model's operations: what
    activation checkpointing or attention kernels compute a second time is not counted.

    The task is as before when this returns: no gradients, the same buffers, and torch's
    generators where they were. A compiled one cannot be counted.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH)
    with _undisturbed(task), torch.no_grad(), counter:
        task(batch, epoch)
    return 3.0 * counter.get_total_flops() / len(batch)


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Give torch's generators and the module's buffers their state of before."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    devices = {p.device.index for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of square matrix products in `dtype`, the median of several.

    On a CPU it takes up to about 0.3 s. The matrices grow until a product takes long enough to be
    timed, so small devices are measured with small ones. In float32 on a GPU the rate is that of
    TF32 where torch is set to it.
    """
    side = _SMALLEST
    while True:
        product = _square_product(side, device, dtype)
        product()  # the first call chooses a kernel
        seconds = _seconds(product, device)
        if seconds >= _LONG_ENOUGH or side == _LARGEST:
            break
        side *= 2
    repeats = min(max(int(_SECONDS / seconds), 3), 50)
    measured = [_seconds(product, device) for _ in range(repeats)]
    return float(2 * side**3 / statistics.median(measured))


def _square_product(side: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    # Values like those of a network: a GPU is faster on zeros, which cost it less power.
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randn(side, side, device=device, generator=generator).to(dtype)
    layer = skip_init(Linear, side, side, bias=False, device=device, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(rows)

    @torch.no_grad()
    def product() -> Tensor:
        return layer(rows)

    return product


def _seconds(act: Callable[[], Tensor], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    act()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
