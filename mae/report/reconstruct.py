"""Reconstructions of anybody's images by a saved autoencoder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mae.data.records import Rejected
from mae.errors import DataError, ParamsError
from mae.export.images import InputImage, View, input_images
from mae.hashing import text_id
from mae.model.artifact import load_autoencoder
from mae.report.reconstruction import describe, draw_reconstructions

_WORKERS = 2


@dataclass(frozen=True)
class Drawn:
    """How many images were drawn, what the reconstruction was given, and what was left out."""

    images: int
    caption: str
    rejected: list[Rejected]


def reconstruct_images(checkpoint: Path, images: Path, out: Path, limit: int) -> Drawn:
    """Draw the first `limit` usable images of a folder, or one image, to the PNG `out`.

    The mask of an image is a function of its name. Raises CheckpointError for a folder without
    an autoencoder, DataError when no image can be used, ParamsError when `out` is no .png.
    """
    if out.suffix.lower() != ".png":
        raise ParamsError(f"--out {out} must end in .png")
    artifact = load_autoencoder(checkpoint)
    autoencoder = artifact.autoencoder
    architecture = autoencoder.encoder.architecture
    view = View.of(architecture, artifact.statistics, autoencoder.params.resize)
    rejected: list[Rejected] = []
    chosen: list[InputImage] = []
    for found in input_images(images, view, _WORKERS):
        if isinstance(found, Rejected):
            rejected.append(found)
        else:
            chosen.append(found)
        if len(chosen) == limit:
            break
    if not chosen:
        raise DataError(f"no image in {images} can be used; {rejected[0].id}: {rejected[0].detail}")
    draw_reconstructions(
        autoencoder,
        artifact.statistics,
        torch.from_numpy(np.stack([image.pixels for image in chosen])),
        torch.tensor([text_id(image.key) for image in chosen]),
        out,
    )
    return Drawn(len(chosen), describe(autoencoder, architecture.channels), rejected)
