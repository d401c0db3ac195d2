"""Batches of features that were computed once, for the training loop."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mae.data.loading.loader import StepOrder
from mae.params import OptimParams
from mae.training.devices import Place


@dataclass(frozen=True)
class FeatureBatch:
    """features float32 (N, D) and labels int64 (N,)."""

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self) -> list[Tensor]:
        return [self.features, self.labels]

    def pinned(self) -> "FeatureBatch":
        """Return the batch in page-locked memory."""
        return FeatureBatch(*(tensor.pin_memory() for tensor in self.tensors()))

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "FeatureBatch":
        return FeatureBatch(
            *(tensor.to(device, non_blocking=non_blocking) for tensor in self.tensors())
        )


class FeatureLoader:
    """This process's part of every batch of features, addressed by step, in StepOrder's order.

    features float32 (n, D), which may be mapped from disk, and labels int64 (n,); rows int64: those
    to learn from.
    """

    wait_seconds = 0.0

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        rows: Tensor,
        optim: OptimParams,
        place: Place,
        *,
        seed: int,
        purpose: str,
    ) -> None:
        self.images = len(rows)
        self._features, self._labels, self._rows = features, labels, rows
        self._order = StepOrder(
            self.images, optim.batch, seed, purpose, place.rank, place.world_size
        )

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        return self._order.epoch_of(step)

    def batches(self, start: int, stop: int) -> Iterator[FeatureBatch]:
        for step in range(start, stop):
            rows = self._rows[self._order.rows(step)]
            yield FeatureBatch(
                self._features.index_select(0, rows), self._labels.index_select(0, rows)
            )
