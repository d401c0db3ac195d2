"""A batch of images as the loader gives it to the loop, and its way onto the device."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor


class Movable(Protocol):
    """A batch of tensors."""

    def tensors(self) -> list[Tensor]: ...

    def pinned(self) -> Self: ...

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self: ...


AnyBatch = TypeVar("AnyBatch", bound=Movable)


def prefetch(
    batches: Iterable[AnyBatch], device: torch.device | str
) -> Generator[AnyBatch, None, None]:
    """Yield the batches on `device`; onto a GPU each is copied while the one before is used.

    Closing this closes `batches` where it is a generator.
    """
    device = torch.device(device)
    moved = _copied_ahead(batches, device) if device.type == "cuda" else _moved(batches, device)
    try:
        yield from moved
    finally:
        if isinstance(batches, Generator):
            batches.close()


def _moved(batches: Iterable[AnyBatch], device: torch.device) -> Generator[AnyBatch, None, None]:
    for batch in batches:
        yield batch.to(device)


def _copied_ahead(
    batches: Iterable[AnyBatch], device: torch.device
) -> Generator[AnyBatch, None, None]:
    side = torch.cuda.Stream(device)
    waiting: tuple[AnyBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            # From pinned memory alone does a copy run beside the computation. PyTorch's pinned
            # blocks are not used again before the copies out of them are done.
            copied = batch.pinned().to(device)
            following = copied, side.record_event()
        if waiting is not None:
            yield _arrived(*waiting, device)
        waiting = following
    if waiting is not None:
        yield _arrived(*waiting, device)


def _arrived(batch: AnyBatch, copied: torch.cuda.Event, device: torch.device) -> AnyBatch:
    """Let the computation wait for the copy, and the memory for the computation."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    for tensor in batch.tensors():
        tensor.record_stream(stream)
    return batch


@dataclass(frozen=True)
class Batch:
    """images uint8 or uint16 (N, C, H, W), ids int64 (N,), labels int64 (N,) with -1 for none."""

    images: Tensor
    ids: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        return Batch(
            self.images.to(device, non_blocking=non_blocking),
            self.ids.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
        )

    def tensors(self) -> list[Tensor]:
        return [self.images, self.ids, self.labels]

    def pinned(self) -> "Batch":
        """Return the batch in page-locked memory."""
        return Batch(*(tensor.pin_memory() for tensor in self.tensors()))

    def split(self, parts: int) -> list["Batch"]:
        """Cut into `parts` micro-batches of equal length. Raises ValueError where they are not."""
        if len(self) % parts:
            raise ValueError(f"a batch of {len(self)} cannot be cut into {parts} equal parts")
        length = len(self) // parts
        pieces = (
            self.images.split(length),
            self.ids.split(length),
            self.labels.split(length),
        )
        return [Batch(*piece) for piece in zip(*pieces, strict=True)]
