"""Where a run computes: device, precision, and its place among the processes of the run."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from mae.errors import ParamsError
from mae.params import Precision

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """This process among `world_size`, and the device it computes on.

    sharding: how a model that learns is divided between them, `ddp` (not at all) or `fsdp`.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    sharding: str = "ddp"

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def share(self, count: int) -> Tensor:
        """Return this process's rows of `count`, int64: a stretch of the same length for all.

        Where they do not divide evenly the last row is repeated, and `gather` leaves the copies
        out, so that no row is counted twice.
        """
        length = -(-count // self.world_size)
        return (torch.arange(length) + self.rank * length).clamp(max=count - 1)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """Return all `count` rows (count, ...) in order, from what each made of its share."""
        if self.world_size == 1:
            return rows
        mine = rows.contiguous().to(self.device)
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(parts, mine)
        return torch.cat(parts)[:count].to(rows.device)

    def wait_for_all(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def resolve_device(wanted: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`. Raises ParamsError for an absent GPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ParamsError("runtime.device is cuda but torch sees no GPU: use auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def joined(wanted: str, sharding: str = "ddp") -> Iterator[Place]:
    """Join the processes that torchrun started, if it did, and leave them at the end."""
    device = resolve_device(wanted)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield Place(device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    # Naming the device binds NCCL's communicator to it at once, and not at the first exchange.
    bound = device if device.type == "cuda" else None
    dist.init_process_group(backend, timeout=timedelta(minutes=10), device_id=bound)
    try:
        yield Place(device, dist.get_rank(), dist.get_world_size(), sharding)
    finally:
        dist.destroy_process_group()


def resolve_precision(wanted: Precision, device: torch.device) -> Precision:
    """Return fp32, bf16 or fp16: `auto` is bf16 where the hardware multiplies it natively."""
    if wanted != "auto":
        if wanted == "fp16" and device.type == "cpu":
            raise ParamsError("precision fp16 needs a GPU: use auto, bf16 or fp32 on a CPU")
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bf16" if native else "fp32"


AUTOCAST_DTYPE = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
