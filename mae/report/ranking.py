"""Which images an autoencoder reconstructs worst: odd, broken or misplaced ones, most often."""

import csv
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mae.export.images import InputImage
from mae.files import replacing_file
from mae.hashing import text_id
from mae.model.autoencoder import Autoencoder
from mae.model.losses import Loss, build_loss
from mae.model.patches import patchify
from mae.params import LossParams
from mae.pixels import PixelNormalizer, PixelStatistics
from mae.report.reconstruction import Reconstructing, data_in

MASKS = 4  # an image's loss is the mean under so many masks, always the same ones for its name

_BATCH = 32


@dataclass(frozen=True)
class Scored:
    """An image, its loss, and its place in the order in which images were seen."""

    image: InputImage
    loss: float
    place: int


def worst_images(
    images: Iterable[InputImage],
    autoencoder: Reconstructing,
    statistics: PixelStatistics,
    count: int,
) -> list[Scored]:
    """Return the `count` images of the highest loss, the worst first; all are looked at once.

    Only these are held in memory. Of equals the earlier one counts as worse.
    """
    scored = _scored(images, autoencoder, statistics)
    return heapq.nlargest(count, scored, key=lambda one: (one.loss, -one.place))


def write_ranking(path: Path, worst: list[Scored]) -> None:
    """Write a CSV file with the columns rank, image and loss."""
    with (
        replacing_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rank", "image", "loss"])
        writer.writerows(
            [rank, one.image.key, f"{one.loss:.6g}"] for rank, one in enumerate(worst, start=1)
        )


def ids_of(images: Iterable[InputImage]) -> Tensor:
    """Return the ids int64 (N,) that seed the images' masks: functions of their names."""
    return torch.tensor([text_id(image.key) for image in images])


def stacked(images: Iterable[InputImage]) -> Tensor:
    """Return uint8 or uint16 (N, C, H, W)."""
    return torch.from_numpy(np.stack([image.pixels for image in images]))


@torch.no_grad()
def _scored(
    images: Iterable[InputImage], autoencoder: Reconstructing, statistics: PixelStatistics
) -> Iterator[Scored]:
    device = next(autoencoder.parameters()).device
    normalize = PixelNormalizer(statistics).to(device)
    loss = _loss_of(autoencoder)
    masks = MASKS if autoencoder.params.mask.last_ratio > 0 else 1
    waiting, place = iter(images), 0
    while some := list(islice(waiting, _BATCH)):
        stored, ids = stacked(some).to(device), ids_of(some).to(device)
        pixels, holding = normalize(stored), data_in(stored, autoencoder)
        losses = [_losses(autoencoder, loss, pixels, ids, mask, holding) for mask in range(masks)]
        for image, value in zip(some, torch.stack(losses).mean(dim=0).tolist(), strict=True):
            yield Scored(image, value, place)
            place += 1


def _loss_of(autoencoder: Reconstructing) -> Loss:
    """Return what it was trained to lower; the squared error where that takes another network."""
    params, architecture = autoencoder.params, autoencoder.encoder.architecture
    loss = params.loss
    if loss.kind == "perceptual":
        loss = LossParams(kind="mse")
    return build_loss(loss, params.target, architecture.channels, architecture.patch)


def _losses(
    autoencoder: Reconstructing,
    loss: Loss,
    images: Tensor,
    ids: Tensor,
    mask: int,
    holding: dict[str, Tensor],
) -> Tensor:
    """Return each image's mean loss over the patches that count: float32 (N,)."""
    if isinstance(autoencoder, Autoencoder):
        outcome = autoencoder(images, ids, seed=0, epoch=mask, **holding)
        losses = loss(outcome.prediction, outcome.target)
        if outcome.weights is None:
            return losses.mean(dim=1)
        return (losses * outcome.weights).sum(dim=1) / outcome.weights.sum(dim=1).clamp(min=1e-12)
    patch = autoencoder.encoder.architecture.patch
    reconstruction, _ = autoencoder.reconstruct(images, ids, seed=0, epoch=mask)
    return loss(patchify(reconstruction, patch), patchify(images, patch)).mean(dim=1)
