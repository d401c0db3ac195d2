"""Real images that training did not see, in the forms that an exported graph takes them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.data.dataset import read_dataset_info
from mae.data.loading.evaluation import evaluation_batches, evenly_spread
from mae.data.loading.views import evaluation_view
from mae.data.reader import ShardReader
from mae.errors import DataError
from mae.export.description import EncoderDescription
from mae.export.images import View
from mae.export.preprocessing import Resizer
from mae.params import RuntimeParams

_OF_OTHER_GRIDS = 8  # images, of each


@dataclass(frozen=True)
class HeldOutImages:
    """Images (C, H, W) as the graph takes them, their keys, and the split they come from.

    Those of one height and width stand together. form: how they differ from the usual, in words.
    """

    images: list[NDArray]
    keys: list[str]
    split: str
    form: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: list[int]) -> "HeldOutImages":
        """Return some of them, in the same order."""
        images, keys = [self.images[row] for row in rows], [self.keys[row] for row in rows]
        return replace(self, images=images, keys=keys)

    def batches(self, size: int) -> Iterator[NDArray]:
        """Yield the images in order, (n, C, H, W) with n <= size, one shape at a time."""
        for _, alike in groupby(self.images, key=lambda image: image.shape):
            group = list(alike)
            for start in range(0, len(group), size):
                yield np.stack(group[start : start + size])


def held_out_images(
    shards: Path, about: EncoderDescription, count: int, runtime: RuntimeParams
) -> list[HeldOutImages]:
    """Return `count` images spread over the test split, or over val where test is empty.

    First as users will pass them; where the graph takes patch grids of any shape, some of them in
    other grids too. Raises DataError when neither split has an image, or the data's channels or
    bit depth are not the encoder's.
    """
    reader, rows, view = _chosen(shards, ("test", "val"), about, count)
    if about.resolution == "resized":
        return [_as_they_are(reader, rows)]
    forms = [_seen(reader, rows, view, runtime)]
    if about.resolution == "dynamic":
        a, few = about.architecture, rows[:_OF_OTHER_GRIDS]
        for hp, wp in other_grids(a.grid):
            height, width = hp * a.patch[0], wp * a.patch[1]
            other = replace(view, height=height, width=width)
            forms.append(_seen(reader, few, other, runtime, f" at {height} x {width}"))
    return forms


def calibration_images(
    shards: Path, about: EncoderDescription, count: int, runtime: RuntimeParams
) -> HeldOutImages:
    """Return `count` images spread over train, as users would pass them."""
    reader, rows, view = _chosen(shards, ("train",), about, count)
    if about.resolution == "resized":
        return _as_they_are(reader, rows)
    return _seen(reader, rows, view, runtime)


def other_grids(usual: tuple[int, int]) -> list[tuple[int, int]]:
    """Return patch grids (Hp, Wp) unlike the usual one: taller, wider, and smaller."""
    hp, wp = usual
    return [(hp + 2, wp), (hp, wp + 3), (max(1, hp // 2), max(1, wp - 1))]


def levels_apart(images: HeldOutImages, about: EncoderDescription) -> tuple[float, float]:
    """Return by how many 255ths of full scale the graph's resizing differs from that of
    evaluation: at most, and on average."""
    a, scale = about.architecture, about.statistics.full_scale
    resizer = Resizer(a.height, a.width, about.resize, scale)
    largest, total = 0.0, 0.0
    for image in images.images:
        seen = evaluation_view(image.transpose(1, 2, 0), a.height, a.width, about.resize)
        apart = np.abs(resizer(torch.from_numpy(image)[None])[0].numpy() - seen) * 255 / scale
        largest, total = max(largest, float(apart.max())), total + float(apart.mean())
    return largest, total / len(images)


def _chosen(
    shards: Path, splits: tuple[str, ...], about: EncoderDescription, count: int
) -> tuple[ShardReader, Tensor, View]:
    """Return the first split that has images, the rows to take of it, and how they are seen."""
    counts = read_dataset_info(shards).splits
    split = next((split for split in splits if counts.get(split)), None)
    if split is None:
        raise DataError(
            f"{shards} has no image in {' or '.join(splits)} to compare the export on: "
            "raise data.splits.test"
        )
    reader = ShardReader(shards, split)
    _check_same_kind(reader, about)
    view = View.of(about.architecture, about.statistics, about.resize)
    return reader, evenly_spread(len(reader), count), view


def _check_same_kind(reader: ShardReader, about: EncoderDescription) -> None:
    found, wanted = reader.info.statistics, about.statistics
    if (found.channels, found.bit_depth) != (wanted.channels, wanted.bit_depth):
        raise DataError(
            f"the encoder takes {wanted.channels} channel(s) of {wanted.bit_depth} bits and the "
            f"data has {found.channels} of {found.bit_depth}: pretrain on this data, or shard it "
            "with the encoder's channels and bit depth"
        )


def _seen(
    reader: ShardReader, rows: Tensor, view: View, runtime: RuntimeParams, form: str = ""
) -> HeldOutImages:
    batches = evaluation_batches(
        reader, view, workers=runtime.workers, batch=len(rows), positions=rows
    )
    images = [image for batch in batches for image in batch.images.numpy()]
    return HeldOutImages(images, [reader.keys[row] for row in rows.tolist()], reader.split, form)


def _as_they_are(reader: ShardReader, rows: Tensor) -> HeldOutImages:
    images = {
        reader.keys[row]: np.ascontiguousarray(reader.pixels(row).transpose(2, 0, 1))
        for row in rows.tolist()
    }
    keys = sorted(images, key=lambda key: images[key].shape)
    return HeldOutImages([images[key] for key in keys], keys, reader.split)
