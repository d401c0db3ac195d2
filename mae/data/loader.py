"""Batches of images: uint8 or uint16 (N, C, H, W), cropped and resized, read ahead by threads.

What is in a batch is a pure function of (seed, purpose, step): not of the number of threads or
ranks, nor of where a run was interrupted.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.data.batch import Batch
from mae.data.cache import PixelCache
from mae.data.crops import centre, covering_shape, random_crops
from mae.data.decode import Pixels
from mae.data.parallel import ordered_map
from mae.data.reader import ShardReader
from mae.data.resample import resample_batch, resample_one
from mae.errors import DataError
from mae.hashing import permutation
from mae.params import AugmentParams

# Small enough that the work arrays of a task stay in the cache of a core.
_ROWS_PER_TASK = 32
# Below this many pixels a batch of one shape is resampled by matrices, all images at once.
_SMALL = 128 * 128


class StepOrder:
    """Which images each step learns from: every epoch a new order, its ragged end left out.

    A rank takes rows rank x batch / world_size onwards of the global batch.
    """

    def __init__(
        self, images: int, batch: int, seed: int, purpose: str, rank: int, world_size: int
    ) -> None:
        if images < 1:
            raise DataError(f"there is no image to learn from ({purpose})")
        self.batch = min(batch, images)
        if self.batch % world_size:
            raise DataError(
                f"a batch of {self.batch} cannot be shared equally by {world_size} processes: "
                "change pretrain.batch or runtime.launch.processes in params.yaml"
            )
        self.steps_per_epoch = images // self.batch
        part = self.batch // world_size
        self._rows = slice(rank * part, (rank + 1) * part)
        self._order = lru_cache(maxsize=2)(
            lambda epoch: permutation(seed, f"{purpose}:order", epoch, images)
        )

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def rows(self, step: int) -> Tensor:
        """Return int64 positions, this rank's part of the step's batch, in order."""
        first = step % self.steps_per_epoch * self.batch
        return self._order(self.epoch_of(step))[first : first + self.batch][self._rows]


@dataclass(frozen=True)
class _Task:
    """Rows of one batch for one thread: the images' indices and where their pixels go."""

    indices: Tensor
    epoch: int
    target: NDArray
    completes: Batch | None


class _Feed:
    """Cuts batches into tasks for threads and yields the batches in order."""

    def __init__(
        self,
        reader: ShardReader,
        height: int,
        width: int,
        workers: int,
        fill: Callable[[_Task], None],
    ) -> None:
        self._reader = reader
        statistics = reader.info.statistics
        self._shape = (statistics.channels, height, width)
        self._dtype = np.uint8 if statistics.bit_depth == 8 else np.uint16
        self._workers = workers
        self._fill = fill

    def batches(self, plan: Iterable[tuple[Tensor, int]]) -> Generator[Batch, None, None]:
        """`plan` gives the indices and the epoch of each batch."""
        ahead = 2 * self._workers
        for done in ordered_map(self._work, self._tasks(plan), self._workers, ahead):
            if done is not None:
                yield done

    def _tasks(self, plan: Iterable[tuple[Tensor, int]]) -> Iterator[_Task]:
        for indices, epoch in plan:
            images = np.empty((len(indices), *self._shape), dtype=self._dtype)
            ids, labels = self._reader.ids[indices], self._reader.labels[indices]
            batch = Batch(torch.from_numpy(images), ids, labels)
            starts = range(0, len(indices), _ROWS_PER_TASK)
            for start in starts:
                rows = slice(start, start + _ROWS_PER_TASK)
                completes = batch if start == starts[-1] else None
                yield _Task(indices[rows], epoch, images[rows], completes)

    def _work(self, task: _Task) -> Batch | None:
        self._fill(task)
        return task.completes


class TrainLoader:
    """Endless random-resized-crop batches for learning, addressed by global step.

    images: number learned from. wait_seconds: how long the consumer waited for batches so far.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        height: int,
        width: int,
        batch: int,
        seed: int,
        purpose: str,
        augment: AugmentParams,
        workers: int,
        cache_mb: int,
        positions: Tensor | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._reader = reader
        self._height, self._width = height, width
        self._seed, self._purpose, self._augment = seed, purpose, augment
        self._positions = torch.arange(len(reader)) if positions is None else positions
        self.images = len(self._positions)
        self._order = StepOrder(self.images, batch, seed, purpose, rank, world_size)
        self._cache = PixelCache(reader, cache_mb)
        self._at_once = _resamples_at_once(reader)
        self._feed = _Feed(reader, height, width, workers, self._fill)
        self.wait_seconds = 0.0

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        return self._order.epoch_of(step)

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yield this rank's batches of steps start..stop-1; closing the iterator frees threads."""
        plan = (
            (self._positions[self._order.rows(step)], self.epoch_of(step))
            for step in range(start, stop)
        )
        batches = self._feed.batches(plan)
        try:
            while True:
                before = time.perf_counter()
                batch = next(batches, None)
                self.wait_seconds += time.perf_counter() - before
                if batch is None:
                    return
                yield batch
        finally:
            batches.close()

    def _fill(self, task: _Task) -> None:
        reader, indices = self._reader, task.indices
        crops, flips = random_crops(
            self._seed,
            self._purpose,
            task.epoch,
            reader.ids[indices],
            reader.heights[indices],
            reader.widths[indices],
            self._augment,
        )
        images = [self._cache.pixels(index) for index in indices.tolist()]
        if self._at_once:
            small = np.stack(images).transpose(0, 3, 1, 2)
            task.target[:] = resample_batch(small, crops, flips, self._height, self._width)
            return
        for image, crop, flip, row in zip(images, crops, flips, task.target, strict=True):
            top, left, height, width = crop.tolist()
            seen = resample_one(image, (top, left, height, width), self._height, self._width)
            row[:] = seen[..., ::-1] if flip else seen


class EvalLoader:
    """Every image once, in order: resized to cover `resize` x (height, width), centre-cropped.

    The last batch is ragged. len() is the number of batches.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        height: int,
        width: int,
        resize: float,
        batch: int,
        workers: int,
        cache_mb: int,
        positions: Tensor | None = None,
    ) -> None:
        self._positions = torch.arange(len(reader)) if positions is None else positions
        self.images = len(self._positions)
        self._output = (height, width)
        self._resize = resize
        self._batch = batch
        self._cache = PixelCache(reader, cache_mb)
        self._at_once = _resamples_at_once(reader)
        self._feed = _Feed(reader, height, width, workers, self._fill)

    def __len__(self) -> int:
        return -(-self.images // self._batch)

    def __iter__(self) -> Iterator[Batch]:
        return self._feed.batches((part, 0) for part in self._positions.split(self._batch))

    def _fill(self, task: _Task) -> None:
        images = [self._cache.pixels(index) for index in task.indices.tolist()]
        if self._at_once:
            task.target[:] = self._view_all(np.stack(images).transpose(0, 3, 1, 2))
            return
        for image, row in zip(images, task.target, strict=True):
            row[:] = self._view_one(image)

    def _view_all(self, images: NDArray) -> NDArray:
        height, width = images.shape[2:]
        outer = covering_shape((height, width), self._output, self._resize)
        crops = np.tile([0, 0, height, width], (len(images), 1))
        resized = resample_batch(images, crops, np.zeros(len(images), bool), *outer)
        return self._central(resized)

    def _view_one(self, image: Pixels) -> NDArray:
        height, width = image.shape[:2]
        outer = covering_shape((height, width), self._output, self._resize)
        return self._central(resample_one(image, (0, 0, height, width), *outer))

    def _central(self, planes: NDArray) -> NDArray:
        top, left = centre(planes.shape[-2:], self._output)
        return planes[..., top : top + self._output[0], left : left + self._output[1]]


def _resamples_at_once(reader: ShardReader) -> bool:
    return reader.shape is not None and reader.shape[0] * reader.shape[1] <= _SMALL
