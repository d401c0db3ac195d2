"""A batch of images as the loader gives it to the loop."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
