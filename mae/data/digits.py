"""The embedded data: scikit-learn's handwritten digits, drawn as images and composed into scenes.

Each of the 1,797 digits (8 x 8 pixels, 17 grey levels; Alpaydin and Kaynak, 1998) is drawn
several times, at varying place, scale, angle and contrast. A scene holds a few drawn digits
with their boxes and masks. Neighbouring digits come from one writer, so they form a group:
images and scenes of a group share a split, and no writer's digit leaks into an evaluation.
"""

import io
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from mae.data.annotations import annotation_of
from mae.data.records import Inline, Record
from mae.hashing import text_id, uniform

HEIGHT, WIDTH = 24, 24
DRAWINGS = 4
SCENE_HEIGHT, SCENE_WIDTH = 48, 72
SCENES_PER_GROUP = 3
DIGITS_PER_SCENE = (2, 4)

_GROUP = 15
_MAX_ANGLE = 20.0
_SIDE = (16, 23)
_VISIBLE = 0.35  # of full ink: what counts as inside a digit's mask


@cache
def _source() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images * (255 / 16)).astype(np.uint8), digits.target


def _draws(seed: int, purpose: str, name: str, count: int) -> np.ndarray:
    ids = torch.tensor([text_id(name)])
    return uniform(seed, purpose, 0, ids, count)[0].numpy()


def _ink(index: int, draws: np.ndarray) -> np.ndarray:
    """Return one digit, scaled and turned by two draws: ink from 0 to 1, (side, side)."""
    side = round(_SIDE[0] + draws[0] * (_SIDE[1] - _SIDE[0]))
    angle = (2 * draws[1] - 1) * _MAX_ANGLE
    image = Image.fromarray(_source()[0][index]).resize((side, side), Image.Resampling.BICUBIC)
    turned = image.rotate(angle, Image.Resampling.BICUBIC)
    return np.asarray(turned, dtype=np.float64) / 255


def _paint(canvas: np.ndarray, ink: np.ndarray, row: int, column: int, grey: float) -> None:
    """Blend `grey` into canvas at (row, column), as strongly as the ink there."""
    part = canvas[row : row + ink.shape[0], column : column + ink.shape[1]]
    part += ink * (grey - part)


def _background(draws: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a slanting gradient between two dark greys, (height, width)."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    slope = np.cos(2 * np.pi * draws[0]) * (rows - 0.5) + np.sin(2 * np.pi * draws[0]) * (
        columns - 0.5
    )
    return 40 + 50 * draws[1] + 60 * (draws[2] - 0.5) * slope


def _png(canvas: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.clip(canvas.round(), 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def digit_images(seed: int) -> Iterator[Record]:
    """Yield DRAWINGS grey images (HEIGHT x WIDTH) of each digit, labelled '0' to '9'."""
    _, targets = _source()
    for index, target in enumerate(targets):
        for drawing in range(DRAWINGS):
            name = f"digits/{index:04d}-{drawing}.png"
            draws = _draws(seed, "digit image", name, 8)
            ink = _ink(index, draws)
            canvas = _background(draws[2:5], HEIGHT, WIDTH)
            row = int(draws[5] * (HEIGHT - ink.shape[0] + 1))
            column = int(draws[6] * (WIDTH - ink.shape[1] + 1))
            _paint(canvas, ink, row, column, grey=150 + 105 * draws[7])
            yield Record(
                id=name,
                image=Inline(_png(canvas)),
                label=str(target),
                annotations=None,
                split=None,
                group=_group(index),
            )


def digit_scenes(seed: int) -> Iterator[Record]:
    """Yield grey scenes (SCENE_HEIGHT x SCENE_WIDTH) with a COCO annotation for each digit."""
    groups = -(-len(_source()[0]) // _GROUP)
    for group in range(groups):
        for scene in range(SCENES_PER_GROUP):
            name = f"scenes/{group:03d}-{scene}.png"
            canvas, annotations = _compose(seed, group, name)
            yield Record(
                id=name,
                image=Inline(_png(canvas)),
                label=None,
                annotations=annotations,
                split=None,
                group=_group(group * _GROUP),
            )


def _group(index: int) -> str:
    return f"digits-{index // _GROUP:03d}"


def _compose(seed: int, group: int, name: str) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw a scene from the digits of a group; later digits lie on top of earlier ones."""
    fewest, most = DIGITS_PER_SCENE
    head = _draws(seed, "scene", name, 4)
    canvas = _background(head[:3], SCENE_HEIGHT, SCENE_WIDTH)
    count = fewest + int(head[3] * (most - fewest + 1))
    members = range(group * _GROUP, min((group + 1) * _GROUP, len(_source()[0])))
    placed: list[tuple[int, np.ndarray]] = []
    boxes: list[tuple[int, int, int, int]] = []
    for position in range(count):
        draws = _draws(seed, "scene digit", f"{name}/{position}", 6 + 2 * 20)
        index = members[int(draws[0] * len(members))]
        ink = _ink(index, draws[1:3])
        spot = _free_spot(boxes, ink.shape[0], draws[6:])
        if spot is None:
            continue
        row, column = spot
        boxes.append((row, column, row + ink.shape[0], column + ink.shape[1]))
        _paint(canvas, ink, row, column, grey=150 + 105 * draws[3])
        mask = np.zeros((SCENE_HEIGHT, SCENE_WIDTH), dtype=bool)
        mask[row : row + ink.shape[0], column : column + ink.shape[1]] = ink > _VISIBLE
        placed = [(other, covered & ~mask) for other, covered in placed]
        placed.append((index, mask))
    names = _source()[1]
    return canvas, [annotation_of(str(names[index]), mask) for index, mask in placed if mask.any()]


def _free_spot(
    boxes: list[tuple[int, int, int, int]], side: int, draws: np.ndarray
) -> tuple[int, int] | None:
    """Return the first drawn (row, column) that overlaps no box by more than a little."""
    for vertical, horizontal in draws.reshape(-1, 2):
        row = int(vertical * (SCENE_HEIGHT - side + 1))
        column = int(horizontal * (SCENE_WIDTH - side + 1))
        overlaps = (
            min(row + side, bottom) - max(row, top) > 3
            and min(column + side, right) - max(column, left) > 3
            for top, left, bottom, right in boxes
        )
        if not any(overlaps):
            return row, column
    return None
