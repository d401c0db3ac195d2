"""Several processes played by threads: what each makes of its part, put together for real."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from mae.training.devices import Place

Result = TypeVar("Result")


@dataclass(frozen=True)
class Meeting:
    """Where the processes exchange tensors."""

    barrier: threading.Barrier
    brought: dict[int, Tensor] = field(default_factory=dict)

    def exchange(self, rank: int, tensor: Tensor) -> list[Tensor]:
        self.brought[rank] = tensor.clone()
        self.barrier.wait(timeout=60)
        parts = [self.brought[one] for one in range(self.barrier.parties)]
        self.barrier.wait(timeout=60)
        return parts


@dataclass(frozen=True)
class PlayedPlace(Place):
    """A Place that meets the others at a barrier instead of through torch.distributed."""

    meeting: Meeting = field(default_factory=lambda: Meeting(threading.Barrier(1)))

    def sum(self, values: Tensor) -> Tensor:
        total = torch.stack(self.meeting.exchange(self.rank, values)).sum(dim=0)
        return values.copy_(total)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        parts = self.meeting.exchange(self.rank, rows)
        assert len({len(part) for part in parts}) == 1, "a collective needs equal shapes"
        return torch.cat(parts)[:count]

    def wait_for_all(self) -> None:
        self.meeting.barrier.wait(timeout=60)


def side_by_side(world_size: int, work: Callable[[Place], Result]) -> list[Result]:
    """Return what `work` returns in each of so many processes, all running at once.

    They share torch's generator, as processes do not: models are to be built before.
    """
    meeting = Meeting(threading.Barrier(world_size))

    def at(rank: int) -> Any:
        try:
            return work(PlayedPlace(torch.device("cpu"), rank, world_size, meeting=meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(at, range(world_size)))
