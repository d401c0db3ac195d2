"""What the autoencoder makes of images it sees a quarter of: original, masked, reconstruction."""

import textwrap
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mae.files import replacing_file
from mae.model.autoencoder import Autoencoder
from mae.pixels import PixelNormalizer, PixelStatistics
from mae.report.pictures import displayed

_TITLES = ("original", "masked", "reconstruction")
_CELL = 112  # pixels of the shorter side of a picture in the panel, at least
_LARGEST = 320  # and of its longer side, at most
_GAP, _BLOCK_GAP, _LINE = 6, 26, 20
_HIDDEN_GREY = 0.5
_PAPER, _INK, _MUTED = (255, 255, 255), (34, 34, 34), (110, 110, 110)


@torch.no_grad()
def draw_reconstructions(
    autoencoder: Autoencoder,
    statistics: PixelStatistics,
    images: Tensor,
    ids: Tensor,
    path: Path,
) -> None:
    """Write a PNG with a row for each image: original | masked | reconstruction, and a caption.

    images uint8 or uint16 (N, C, H, W), ids int64 (N,): an image's mask is a function of its id.
    """
    device = next(autoencoder.parameters()).device
    normalize = PixelNormalizer(statistics).to(device)
    normalised = normalize(images.to(device))
    pixels, mask = autoencoder.reconstruct(normalised, ids.to(device), seed=0, epoch=0)
    full = statistics.full_scale
    originals = images.cpu().float() / full
    reconstructions = normalize.invert(pixels).cpu() / full
    masked = torch.where(mask.cpu(), torch.tensor(_HIDDEN_GREY), originals)
    rows = [
        [displayed(part[i].numpy()) for part in (originals, masked, reconstructions)]
        for i in range(len(images))
    ]
    panel = _panel(rows, describe(autoencoder, images.shape[1]))
    with replacing_file(path) as temporary:
        panel.save(temporary, "PNG")


def describe(autoencoder: Autoencoder, channels: int) -> str:
    """Return the caption: how much was hidden, and what the reconstruction was given."""
    grid = autoencoder.encoder.architecture.grid
    patches = grid[0] * grid[1]
    hidden = patches - autoencoder.params.mask.kept(patches)
    sentences = [
        f"{hidden} of {patches} patches hidden ({hidden / patches:.0%}); visible patches are the "
        "image's own."
    ]
    if autoencoder.params.target == "normalized_pixels":
        sentences.append(
            "The network predicts each hidden patch up to brightness and contrast (normalised "
            "pixels); these were taken from the true patch, so the picture flatters it."
        )
    else:
        sentences.append("The network predicts pixels; nothing was taken from the hidden patches.")
    if channels not in (1, 3):
        sentences.append(f"Of {channels} channels the first {3 if channels > 2 else 1} are shown.")
    return " ".join(sentences)


def _panel(rows: list[list[NDArray[np.uint8]]], caption: str) -> Image.Image:
    """Lay the rows out in one block of three columns, or two side by side for more than four."""
    blocks = 2 if len(rows) > 4 else 1
    per_block = -(-len(rows) // blocks)
    height, width = _cell_shape(rows[0][0])
    block_width = 3 * width + 2 * _GAP
    total_width = blocks * block_width + (blocks - 1) * _BLOCK_GAP + 2 * _GAP
    font = ImageFont.load_default(size=13)
    lines = textwrap.wrap(caption, width=max(30, int(total_width / 6.6)))
    grid_height = _LINE + per_block * (height + _GAP)
    panel = Image.new("RGB", (total_width, grid_height + len(lines) * _LINE + 2 * _GAP), _PAPER)
    draw = ImageDraw.Draw(panel)
    for index, row in enumerate(rows):
        block, line = divmod(index, per_block)
        left = _GAP + block * (block_width + _BLOCK_GAP)
        for column, picture in enumerate(row):
            x = left + column * (width + _GAP)
            if line == 0:
                draw.text((x, 4), _TITLES[column], fill=_MUTED, font=font)
            panel.paste(_scaled(picture, height, width), (x, _LINE + line * (height + _GAP) + 2))
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
