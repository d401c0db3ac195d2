"""The images of a split as evaluation sees them: once, in order, a few spread evenly or all."""

from typing import Protocol

import torch
from torch import Tensor

from mae.data.loading.loader import EvalLoader
from mae.data.reader import ShardReader


class Frame(Protocol):
    """The part of an image that a model sees: `resize` x (height, width) is covered, the centre
    cut out. Parameters of a model, encoders and views all say theirs."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def resize(self) -> float: ...


def evaluation_batches(
    reader: ShardReader,
    frame: Frame,
    *,
    workers: int,
    batch: int,
    positions: Tensor | None = None,
    cache_mb: int = 0,
) -> EvalLoader:
    """Return the images at `positions` int64 (n,), or all, as `frame` shows them.

    workers: decoding threads. cache_mb: decoded images to keep, for whoever reads them again.
    """
    return EvalLoader(
        reader,
        height=frame.height,
        width=frame.width,
        resize=frame.resize,
        batch=batch,
        workers=workers,
        cache_mb=cache_mb,
        positions=positions,
    )


def evenly_spread(count: int, at_most: int | None) -> Tensor:
    """Return up to `at_most` of 0..count - 1, ascending and evenly apart; all for None."""
    chosen = count if at_most is None else min(at_most, count)
    return torch.arange(chosen) * count // chosen
