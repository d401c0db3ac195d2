"""What fine-tuning adds to random crops: RandAugment, random erasing, mixup and cutmix.

Pixels are changed by threads; what needs the batch is drawn here and applied on the device, after
normalisation. All of it is a function of (seed, purpose, step), as the crops are.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mae.data.loading.batch import Batch
from mae.data.loading.loader import TrainLoader
from mae.data.loading.mixing import draw_erasing, draw_mixing
from mae.data.loading.parallel import WaitClock, ordered_map
from mae.data.loading.randaugment import RandAugment
from mae.params import FinetuneAugmentParams
from mae.pixels import PixelStatistics

_ROWS_PER_TASK = 32


@dataclass(frozen=True)
class AugmentedBatch:
    """A batch, and what is still to be done to it once it is normalised.

    images, ids, labels: as of Batch. erased int64 (E,), erased_boxes int64 (E, 4), shares float32
    (N,), boxes int64 (N, 4): see mae.data.loading.mixing. Shares of 1 and no row to erase change
    nothing.
    """

    images: Tensor
    ids: Tensor
    labels: Tensor
    erased: Tensor
    erased_boxes: Tensor
    shares: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def tensors(self) -> list[Tensor]:
        return [
            *(self.images, self.ids, self.labels),
            *(self.erased, self.erased_boxes, self.shares, self.boxes),
        ]

    def pinned(self) -> "AugmentedBatch":
        """Return the batch in page-locked memory."""
        return AugmentedBatch(*(tensor.pin_memory() for tensor in self.tensors()))

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "AugmentedBatch":
        return AugmentedBatch(
            *(tensor.to(device, non_blocking=non_blocking) for tensor in self.tensors())
        )


@dataclass(frozen=True)
class _Task:
    """Rows of a batch for one thread."""

    rows: slice
    batch: Batch
    epoch: int
    completes: bool


def with_augmentations(
    loader: TrainLoader,
    augment: FinetuneAugmentParams,
    statistics: PixelStatistics,
    *,
    seed: int,
    purpose: str,
    workers: int,
) -> "TrainLoader | AugmentedLoader":
    """Return a loader that adds what is asked for; the same one where nothing is.

    statistics: of the images stored. Raises ParamsError for a RandAugment that does not suit them.
    """
    adds = (augment.randaugment, augment.mixup, augment.cutmix, augment.erasing)
    if not any(adds):
        return loader
    return AugmentedLoader(loader, augment, statistics, seed=seed, purpose=purpose, workers=workers)


class AugmentedLoader:
    """A TrainLoader's batches as AugmentedBatches, addressed by step as they are.

    With several processes each takes its part of the batch; where that is an even number of images
    they are mixed as a single process would.
    """

    def __init__(
        self,
        loader: TrainLoader,
        augment: FinetuneAugmentParams,
        statistics: PixelStatistics,
        *,
        seed: int,
        purpose: str,
        workers: int,
    ) -> None:
        self._loader = loader
        self.images = loader.images
        self._augment = augment
        self._randaugment: RandAugment | None = None
        if augment.randaugment:
            self._randaugment = RandAugment(augment.randaugment, statistics)
        self._seed, self._purpose, self._workers = seed, purpose, workers
        self._clock = WaitClock()

    @property
    def wait_seconds(self) -> float:
        """How long the consumer waited for batches so far."""
        return self._clock.seconds

    @property
    def steps_per_epoch(self) -> int:
        return self._loader.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        return self._loader.epoch_of(step)

    def batches(self, start: int, stop: int) -> Generator[AugmentedBatch, None, None]:
        """Yield this rank's batches of steps start..stop-1; closing the iterator frees threads."""
        return self._clock.over(self._augmented(start, stop))

    def _augmented(self, start: int, stop: int) -> Generator[AugmentedBatch, None, None]:
        plain = self._loader.batches(start, stop)
        try:
            tasks = self._tasks(start, plain)
            for task in ordered_map(self._work, tasks, self._workers, 2 * self._workers):
                if task.completes:
                    yield self._planned(task.batch, task.epoch)
        finally:
            plain.close()

    def _tasks(self, start: int, plain: Iterator[Batch]) -> Iterator[_Task]:
        for step, batch in enumerate(plain, start):
            firsts = range(0, len(batch), _ROWS_PER_TASK)
            for first in firsts:
                rows = slice(first, first + _ROWS_PER_TASK)
                yield _Task(rows, batch, self.epoch_of(step), completes=first == firsts[-1])

    def _work(self, task: _Task) -> _Task:
        if self._randaugment is not None:
            images, ids = task.batch.images[task.rows].numpy(), task.batch.ids[task.rows]
            self._randaugment(images, ids, self._seed, self._purpose, task.epoch)
        return task

    def _planned(self, batch: Batch, epoch: int) -> AugmentedBatch:
        drawn = self._seed, self._purpose, epoch, batch.ids
        shape = batch.images.shape[-2], batch.images.shape[-1]
        erased = draw_erasing(*drawn, self._augment.erasing, shape)
        shares, boxes = torch.ones(len(batch)), torch.zeros(len(batch), 4, dtype=torch.int64)
        alphas = self._augment.mixup, self._augment.cutmix
        if any(alphas):
            shares, boxes = draw_mixing(*drawn, alphas, shape)
        return AugmentedBatch(batch.images, batch.ids, batch.labels, *erased, shares, boxes)
