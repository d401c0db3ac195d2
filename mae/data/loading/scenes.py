"""Batches of scenes: images fitted into height x width, with boxes, labels and masks that follow.

An image keeps its aspect and lies at the top left; the rest is zero. Training batches are pure
functions of (seed, purpose, step), as those of mae.data.loading.loader.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mae.data.annotations import draw_mask
from mae.data.loading.cache import PixelCache
from mae.data.loading.loader import StepOrder
from mae.data.loading.parallel import WaitClock, ordered_map
from mae.data.loading.resample import resample_one
from mae.data.reader import ShardReader
from mae.data.records import Annotation
from mae.hashing import uniform

Target = dict[str, Tensor]


@dataclass(frozen=True)
class SceneBatch:
    """Images with what is marked on them.

    images: uint8 or uint16 (N, C, H, W). ids, labels: int64 (N,), label -1 for none. targets, one
    for each image: boxes float32 (M, 4) as x0, y0, x1, y1 in pixels of `images`, labels int64
    (M,) counted from 1, masks uint8 (M, H, W), iscrowd int64 (M,). scales: float32 (N, 4), pixels
    of `images` per pixel of the original for x0, y0, x1, y1: boxes / scale are on the original.
    shapes: int64 (N, 2), height and width of the part of each image that is not padding.
    """

    images: Tensor
    ids: Tensor
    labels: Tensor
    targets: list[Target]
    scales: Tensor
    shapes: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "SceneBatch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _each(self, function: Callable[[Tensor], Tensor]) -> "SceneBatch":
        return SceneBatch(
            function(self.images),
            function(self.ids),
            function(self.labels),
            [{name: function(value) for name, value in one.items()} for one in self.targets],
            function(self.scales),
            function(self.shapes),
        )

    def tensors(self) -> list[Tensor]:
        marks = [value for target in self.targets for value in target.values()]
        return [self.images, self.ids, self.labels, self.scales, self.shapes, *marks]

    def pinned(self) -> "SceneBatch":
        """Return the batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def split(self, parts: int) -> list["SceneBatch"]:
        """Cut into `parts` micro-batches of equal length. Raises ValueError where they are not."""
        if len(self) % parts:
            raise ValueError(f"a batch of {len(self)} cannot be cut into {parts} equal parts")
        length = len(self) // parts
        cuts = [slice(start, start + length) for start in range(0, len(self), length)]
        return [
            SceneBatch(
                self.images[cut],
                self.ids[cut],
                self.labels[cut],
                self.targets[cut],
                self.scales[cut],
                self.shapes[cut],
            )
            for cut in cuts
        ]


@dataclass(frozen=True)
class _Task:
    """One row of a batch for one thread: the image's index and where it goes.

    scenes: the batch, each thread filling in its row; completes: whether it is the last row.
    """

    index: int
    flip: bool
    row: int
    scenes: SceneBatch
    completes: bool


class SceneLoader:
    """Scenes for detection and segmentation.

    With train=True use `batches(start, stop)`: every epoch in a new order, flipped left to right
    half the time when `flip`. With train=False iterate: every scene once, in order, as it is.
    len() is the number of batches of such a pass.
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
        flip: bool,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        train: bool = True,
    ) -> None:
        self._reader = reader
        self.images = len(reader)
        self._height, self._width = height, width
        self._batch = batch
        self._seed, self._purpose = seed, purpose
        self._flip = flip and train
        self._workers = workers
        statistics = reader.info.statistics
        self._channels = statistics.channels
        self._dtype = torch.uint8 if statistics.bit_depth == 8 else torch.uint16
        self._images = PixelCache(reader, cache_mb=0)
        self._labels = {name: number for number, name in enumerate(reader.info.categories, 1)}
        self._order = StepOrder(len(reader), batch, seed, purpose, rank, world_size)
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

    def batches(self, start: int, stop: int) -> Generator[SceneBatch, None, None]:
        """Yield this rank's batches of steps start..stop-1; closing the iterator frees threads."""
        return self._load(
            (self._order.rows(step), self.epoch_of(step)) for step in range(start, stop)
        )

    def __len__(self) -> int:
        return -(-self.images // self._batch)

    def __iter__(self) -> Iterator[SceneBatch]:
        return self._load((rows, 0) for rows in torch.arange(self.images).split(self._batch))

    def _load(self, plan: Iterable[tuple[Tensor, int]]) -> Generator[SceneBatch, None, None]:
        return self._clock.over(self._completed(plan))

    def _completed(self, plan: Iterable[tuple[Tensor, int]]) -> Generator[SceneBatch, None, None]:
        # An image at a time, so that one batch occupies every thread; two batches ahead.
        ahead = max(2 * self._batch, self._workers)
        for done in ordered_map(self._work, self._tasks(plan), self._workers, ahead):
            if done is not None:
                yield done

    def _tasks(self, plan: Iterable[tuple[Tensor, int]]) -> Iterator[_Task]:
        for indices, epoch in plan:
            scenes = self._blank(indices)
            rows = zip(indices.tolist(), self._flips(indices, epoch).tolist(), strict=True)
            for row, (index, flip) in enumerate(rows):
                yield _Task(index, flip, row, scenes, completes=row == len(indices) - 1)

    def _blank(self, indices: Tensor) -> SceneBatch:
        rows = len(indices)
        return SceneBatch(
            torch.zeros(rows, self._channels, self._height, self._width, dtype=self._dtype),
            self._reader.ids[indices],
            self._reader.labels[indices],
            [{} for _ in range(rows)],
            torch.zeros(rows, 4),
            torch.zeros(rows, 2, dtype=torch.int64),
        )

    def _flips(self, indices: Tensor, epoch: int) -> Tensor:
        ids = self._reader.ids[indices]
        draws = uniform(self._seed, f"{self._purpose}:flip", epoch, ids, 1)[:, 0]
        return (draws < 0.5) & self._flip

    def _work(self, task: _Task) -> SceneBatch | None:
        index, row, scenes = task.index, task.row, task.scenes
        full = int(self._reader.heights[index]), int(self._reader.widths[index])
        fitted = fitting_shape(full, (self._height, self._width))
        pixels, where = self._images.part(index, (0, 0, *full), *fitted)
        seen = resample_one(pixels, where, *fitted, task.flip)
        scenes.images[row].numpy()[:, : fitted[0], : fitted[1]] = seen
        marks = self._reader.annotations(index)
        scenes.targets[row].update(self._target(marks, full, fitted, task.flip))
        y, x = fitted[0] / full[0], fitted[1] / full[1]
        scenes.scales[row] = torch.tensor([x, y, x, y])
        scenes.shapes[row] = torch.tensor(fitted)
        return scenes if task.completes else None

    def _target(
        self,
        annotations: list[Annotation],
        full: tuple[int, int],
        fitted: tuple[int, int],
        flip: bool,
    ) -> Target:
        found = len(annotations)
        boxes = torch.tensor([one["bbox"] for one in annotations], dtype=torch.float64)
        masks = torch.zeros(found, self._height, self._width, dtype=torch.uint8)
        if found:
            drawn = np.stack([draw_mask(one, *full) for one in annotations])
            small = _shrink_masks(torch.from_numpy(drawn), fitted)
            masks[:, : fitted[0], : fitted[1]] = small.flip(-1) if flip else small
        return {
            "boxes": _fit_boxes(boxes.reshape(found, 4), full, fitted, flip),
            "labels": torch.tensor(
                [self._labels[one["category"]] for one in annotations], dtype=torch.int64
            ),
            "masks": masks,
            "iscrowd": torch.tensor([one["iscrowd"] for one in annotations], dtype=torch.int64),
        }


def fitting_shape(image: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of an image scaled to just fit into `frame`, aspect kept."""
    scale = min(outer / side for outer, side in zip(frame, image, strict=True))
    height, width = (
        min(outer, max(1, round(side * scale))) for outer, side in zip(frame, image, strict=True)
    )
    return height, width


def _fit_boxes(boxes: Tensor, full: tuple[int, int], fitted: tuple[int, int], flip: bool) -> Tensor:
    """COCO's x, y, width, height on the original -> float32 x0, y0, x1, y1, cut at the edge."""
    limit = torch.tensor([full[1], full[0]], dtype=torch.float64)
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    corners = corners.clamp(min=0).minimum(limit.repeat(2))
    scale = torch.tensor([fitted[1] / full[1], fitted[0] / full[0]], dtype=torch.float64)
    corners = corners * scale.repeat(2)
    if flip:
        x0, y0, x1, y1 = corners.unbind(1)
        corners = torch.stack([fitted[1] - x1, y0, fitted[1] - x0, y1], dim=1)
    return corners.float()


def _shrink_masks(masks: Tensor, fitted: tuple[int, int]) -> Tensor:
    """(M, H, W) of 0 and 1 -> (M, *fitted): a pixel belongs when at least half of it does."""
    if masks.shape[1:] == fitted:
        return masks
    shares = interpolate(masks[:, None] * 255, fitted, mode="bilinear", antialias=True)[:, 0]
    return (shares >= 128).to(torch.uint8)
