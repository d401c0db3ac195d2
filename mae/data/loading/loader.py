"""Batches of images: uint8 or uint16 (N, C, H, W), cropped and resized, read ahead by threads.

What is in a batch is a pure function of (seed, purpose, step): not of the number of threads or
ranks, nor of where a run was interrupted.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.data.loading.batch import Batch
from mae.data.loading.cache import PixelCache
from mae.data.loading.crops import SMALL, aligned, covering_shape, random_crops
from mae.data.loading.parallel import WaitClock, ordered_map
from mae.data.loading.resample import resample_batch, resample_one
from mae.data.loading.views import central, evaluation_view, evaluation_views
from mae.data.reader import ShardReader
from mae.errors import DataError
from mae.hashing import permutation
from mae.params import AugmentParams

# Small enough that the work arrays of a task stay in the cache of a core.
_ROWS_PER_TASK = 32


class StepOrder:
    """Which images each step learns from: every epoch a new order, its ragged end left out.

    A rank takes rows rank x batch / world_size onwards of the global batch. With a window, the
    shards come in a new order every epoch and only the images of `window` shards are mixed at a
    time, so that slow disks read one stretch after another; 0 mixes all. shards: int64
    (images,), the shard each lies in.
    """

    def __init__(
        self,
        images: int,
        batch: int,
        seed: int,
        purpose: str,
        rank: int,
        world_size: int,
        *,
        window: int = 0,
        shards: Tensor | None = None,
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
        self._seed, self._purpose, self._images = seed, purpose, images
        self._window, self._shards = window, shards
        self._order = lru_cache(maxsize=2)(self._order_of)

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def rows(self, step: int) -> Tensor:
        """Return int64 positions, this rank's part of the step's batch, in order."""
        first = step % self.steps_per_epoch * self.batch
        return self._order(self.epoch_of(step))[first : first + self.batch][self._rows]

    def _order_of(self, epoch: int) -> Tensor:
        order = permutation(self._seed, f"{self._purpose}:order", epoch, self._images)
        if not self._window or self._shards is None:
            return order
        count = int(self._shards.max()) + 1
        turns = permutation(self._seed, f"{self._purpose}:shards", epoch, count)
        windows = turns.argsort()[self._shards] // self._window
        return order[windows[order].argsort(stable=True)]


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

    images: number learned from. shuffle_window: see StepOrder. jpeg_device: a GPU that decodes
    JPEGs, or None for the threads.
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
        shuffle_window: int = 0,
        jpeg_device: torch.device | None = None,
    ) -> None:
        self._reader = reader
        self._jpeg_device = jpeg_device
        self._height, self._width = height, width
        self._seed, self._purpose, self._augment = seed, purpose, augment
        self._positions = torch.arange(len(reader)) if positions is None else positions
        self.images = len(self._positions)
        self._order = StepOrder(
            *(self.images, batch, seed, purpose, rank, world_size),
            window=shuffle_window,
            shards=reader.shards[self._positions] if shuffle_window else None,
        )
        self._cache = PixelCache(reader, cache_mb)
        self._at_once = _resamples_at_once(reader)
        self._feed = _Feed(reader, height, width, workers, self._fill)
        self._clock = WaitClock()

    @property
    def wait_seconds(self) -> float:
        """How long the consumer waited for batches so far."""
        return self._clock.seconds

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
        return self._clock.over(self._feed.batches(plan))

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
        if self._at_once:
            small = self._cache.stack(indices)
            task.target[:] = resample_batch(small, crops, flips, self._height, self._width)
            return
        left = list(range(len(indices)))
        if self._jpeg_device is not None:
            left = self._fill_on_device(task, crops, flips, self._jpeg_device)
        crops = aligned(crops, self._height, self._width)
        for at in left:
            index, crop, flip, row = (
                int(indices[at]),
                crops[at].tolist(),
                flips[at],
                task.target[at],
            )
            pixels, where = self._cache.part(index, tuple(crop), self._height, self._width)
            row[:] = resample_one(pixels, where, self._height, self._width, flip)

    def _fill_on_device(
        self, task: _Task, crops: NDArray, flips: NDArray, device: torch.device
    ) -> list[int]:
        """Fill in the rows of JPEGs and return the others."""
        contents = {at: self._reader.view(int(index)) for at, index in enumerate(task.indices)}
        frames = {
            at: self._cache.frame(int(task.indices[at]), content)
            for at, content in contents.items()
        }
        rows = [at for at, frame in frames.items() if frame is not None]
        if rows:
            from mae.data.loading.device_jpeg import jpeg_views

            shape = task.target.shape[1], task.target.shape[2], task.target.shape[3]
            encoded = [contents[at] for at in rows]
            views = jpeg_views(encoded, crops[rows], flips[rows], shape, device)
            for at, view in zip(rows, views, strict=True):
                task.target[at] = view
        return [at for at, frame in frames.items() if frame is None]


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
        self._reader = reader
        self._positions = torch.arange(len(reader)) if positions is None else positions
        self.images = len(self._positions)
        self._height, self._width, self._resize = height, width, resize
        self._batch = batch
        self._cache = PixelCache(reader, cache_mb)
        self._at_once = _resamples_at_once(reader)
        self._feed = _Feed(reader, height, width, workers, self._fill)

    def __len__(self) -> int:
        return -(-self.images // self._batch)

    def __iter__(self) -> Iterator[Batch]:
        return self._feed.batches((part, 0) for part in self._positions.split(self._batch))

    def _fill(self, task: _Task) -> None:
        frame = self._height, self._width, self._resize
        if self._at_once:
            task.target[:] = evaluation_views(self._cache.stack(task.indices), *frame)
            return
        for index, row in zip(task.indices.tolist(), task.target, strict=True):
            row[:] = self._view(index)

    def _view(self, index: int) -> NDArray:
        full = int(self._reader.heights[index]), int(self._reader.widths[index])
        output = self._height, self._width
        outer = covering_shape(full, output, self._resize)
        pixels, where = self._cache.part(index, (0, 0, *full), *outer)
        if pixels.shape[:2] == full:
            return evaluation_view(pixels, *output, self._resize)
        return central(resample_one(pixels, where, *outer), *output)


def _resamples_at_once(reader: ShardReader) -> bool:
    return reader.shape is not None and reader.shape[0] * reader.shape[1] <= SMALL
