"""What an autoencoder makes of images it sees a part of, and where it errs."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mae.files import replacing_file
from mae.model.autoencoder import Autoencoder
from mae.model.convolutional import ConvolutionalAutoencoder
from mae.model.patches import holding_data
from mae.pixels import PixelNormalizer, PixelStatistics
from mae.report.pictures import displayed

Reconstructing = Autoencoder | ConvolutionalAutoencoder

_TITLES = ("original", "masked", "reconstruction", "error")
_CELL = 112  # pixels of the shorter side of a picture in the panel, at least
_LARGEST = 320  # and of its longer side, at most
_GAP, _BLOCK_GAP, _LINE = 6, 26, 20
_LETTER = 6.6  # pixels of the font's usual width
_HIDDEN_GREY = 0.5
_PAPER, _INK, _MUTED = (255, 255, 255), (34, 34, 34), (110, 110, 110)

# Errors from none to the scale's end: black, purple, red, yellow, white, ever lighter.
_HEAT = ((0, 0, 0), (84, 15, 109), (203, 62, 54), (251, 180, 26), (252, 255, 230))
_HEAT_QUANTILE = 0.995  # a few outliers must not darken all other errors


@torch.no_grad()
def draw_reconstructions(
    autoencoder: Reconstructing,
    statistics: PixelStatistics,
    images: Tensor,
    ids: Tensor,
    path: Path,
    labels: Sequence[str] | None = None,
) -> str:
    """Write a PNG with a row for each image: original | masked | reconstruction | error.

    images uint8 or uint16 (N, C, H, W), ids int64 (N,): an image's mask is a function of its id.
    labels: a line above each row. Returns the caption that is written below.
    """
    device = next(autoencoder.parameters()).device
    normalize = PixelNormalizer(statistics).to(device)
    normalised = normalize(images.to(device))
    holding = data_in(images.to(device), autoencoder)
    pixels, mask = autoencoder.reconstruct(normalised, ids.to(device), 0, 0, **holding)
    full = statistics.full_scale
    originals = images.cpu().float() / full
    reconstructions = normalize.invert(pixels).cpu() / full
    masked = torch.where(mask.cpu(), torch.tensor(_HIDDEN_GREY), originals)
    errors = (reconstructions.clamp(0, 1) - originals).abs().mean(dim=1)
    scale = _heat_scale(errors)
    rows = [
        [
            *(displayed(part[i].numpy()) for part in (originals, masked, reconstructions)),
            heat(errors[i].numpy() / scale),
        ]
        for i in range(len(images))
    ]
    caption = (
        f"{describe(autoencoder, mask)} Error: absolute difference on a scale of 0 to 1, mean over "
        f"channels; black none, white {scale:.2g} or more."
    )
    panel = _panel(rows, caption, labels)
    with replacing_file(path) as temporary:
        panel.save(temporary, "PNG")
    return caption


def data_in(images: Tensor, autoencoder: Reconstructing) -> dict[str, Tensor]:
    """Return the argument `valid` (N, H, W) that says where stored images hold data, if any says.

    Only the masked autoencoder knows of pixels without data.
    """
    no_data = autoencoder.params.mask.no_data
    if no_data is None or not isinstance(autoencoder, Autoencoder):
        return {}
    return {"valid": holding_data(images, no_data)}


def describe(autoencoder: Reconstructing, mask: Tensor) -> str:
    """Return how much `mask` (bool (N, 1, H, W)) hides, and what the reconstruction was given."""
    architecture = autoencoder.encoder.architecture
    patches = mask.shape[2] // architecture.patch[0] * (mask.shape[3] // architecture.patch[1])
    hidden = float(mask.float().mean())
    if hidden:
        sentences = [
            f"{round(hidden * patches)} of {patches} patches hidden ({hidden:.0%}); visible "
            "patches are the image's own."
        ]
    else:
        sentences = ["Nothing was hidden; all of the picture is the network's."]
    sentences.append(_what_it_was_given(autoencoder))
    if architecture.channels not in (1, 3):
        shown = 3 if architecture.channels > 2 else 1
        sentences.append(f"Of {architecture.channels} channels the first {shown} are shown.")
    return " ".join(sentences)


def _what_it_was_given(autoencoder: Reconstructing) -> str:
    target = autoencoder.params.target
    if target.kind == "normalized_pixels":
        return (
            "The network predicts each patch up to brightness and contrast (normalised pixels); "
            "true patch statistics were used, taken from the true patch, so the picture flatters "
            "it."
        )
    predicted = {
        "pixels": "pixels",
        "pca": f"the first {target.components} principal components of each patch",
        "tokens": f"which of {target.codes} typical patches comes nearest; the likeliest is drawn",
    }
    return f"The network predicts {predicted[target.kind]}; nothing was taken from the true patch."


def heat(errors: NDArray) -> NDArray[np.uint8]:
    """Return errors (H, W), 1 at the end of the scale, as colours (H, W, 3)."""
    stops = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(errors, stops, values) for values in zip(*_HEAT, strict=True)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _heat_scale(errors: Tensor) -> float:
    """Return the error drawn in white: one that few pixels with any error exceed."""
    some = errors[errors > 0].numpy()
    return max(float(np.quantile(some, _HEAT_QUANTILE)), 0.01) if len(some) else 0.01


def _panel(
    rows: list[list[NDArray[np.uint8]]], caption: str, labels: Sequence[str] | None
) -> Image.Image:
    """Lay the rows out in one block of columns, or two side by side for more than four."""
    blocks = 2 if len(rows) > 4 else 1
    per_block = -(-len(rows) // blocks)
    height, width = _cell_shape(rows[0][0])
    columns = len(_TITLES)
    block_width = columns * width + (columns - 1) * _GAP
    label_height = 0 if labels is None else _LINE
    row_height = label_height + height + _GAP
    total_width = blocks * block_width + (blocks - 1) * _BLOCK_GAP + 2 * _GAP
    font = ImageFont.load_default(size=13)
    lines = textwrap.wrap(caption, width=max(30, int(total_width / _LETTER)))
    grid_height = _LINE + per_block * row_height
    panel = Image.new("RGB", (total_width, grid_height + len(lines) * _LINE + 2 * _GAP), _PAPER)
    draw = ImageDraw.Draw(panel)
    for index, row in enumerate(rows):
        block, line = divmod(index, per_block)
        left = _GAP + block * (block_width + _BLOCK_GAP)
        top = _LINE + line * row_height + 2
        if labels is not None:
            text = textwrap.shorten(labels[index], int(block_width / _LETTER), placeholder="…")
            draw.text((left, top), text, fill=_INK, font=font)
        for column, picture in enumerate(row):
            x = left + column * (width + _GAP)
            if line == 0:
                draw.text((x, 4), _TITLES[column], fill=_MUTED, font=font)
            panel.paste(_scaled(picture, height, width), (x, top + label_height))
    for number, text in enumerate(lines):
        draw.text((_GAP, grid_height + _GAP + number * _LINE), text, fill=_INK, font=font)
    return panel


def _cell_shape(picture: NDArray[np.uint8]) -> tuple[int, int]:
    """Return height and width of a picture in the panel: whole multiples for small images."""
    height, width = picture.shape[:2]
    if min(height, width) < _CELL:
        factor: float = -(-_CELL // min(height, width))
    else:
        factor = min(1.0, _LARGEST / max(height, width))
    return round(height * factor), round(width * factor)


def _scaled(picture: NDArray[np.uint8], height: int, width: int) -> Image.Image:
    enlarges = height > picture.shape[0]
    kernel = Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize((width, height), kernel)
