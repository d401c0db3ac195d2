"""Queries and the images that an encoder finds most like them, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.evaluation.drawing import write_png
from mae.evaluation.features import FrozenArm
from mae.evaluation.labelled import LabelledSplit
from mae.evaluation.neighbours import nearest
from mae.evaluation.scene_pictures import as_rgb
from mae.params import RuntimeParams

# Blue and orange of Okabe and Ito's, which the colour-blind tell apart; full or dashed besides.
_RIGHT, _WRONG = ("#0072B2", "solid"), ("#D55E00", "dashed")
_COLUMNS = 8  # neighbours in a row
_LETTERS = 12
_CELL, _ROW, _MARGIN = 1.15, 1.35, 0.4  # inches


@dataclass(frozen=True)
class Shown:
    """One picture of a row: pixels (H, W, C) uint8 or uint16, and a line below it.

    right: whether it has the query's label; None where labels are not known.
    """

    pixels: NDArray
    line: str
    right: bool | None = None


def neighbours_of(
    queries: tuple[LabelledSplit, Tensor],
    gallery: tuple[LabelledSplit, Tensor],
    arm: FrozenArm,
    classes: Sequence[str],
    runtime: RuntimeParams,
    device: torch.device,
) -> list[tuple[Shown, list[Shown]]]:
    """Return each query and its nearest in the gallery, as the encoder sees them.

    queries, gallery: images and their features (n, D). classes: the names of the labels, or none
    where labels are not known.
    """
    columns = min(_COLUMNS, len(gallery[0]))
    found = list(nearest(gallery[1], queries[1], columns, device))
    cosines, rows = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    asked, answered = queries[0], gallery[0].take(rows.flatten())
    questions, answers = (_views(images, arm, runtime) for images in (asked, answered))
    lines = []
    for index, question in enumerate(questions):
        label, start = int(asked.labels[index]), index * columns
        neighbours = []
        for at in range(start, start + columns):
            other = int(answered.labels[at])
            line = f"{_name(other, classes)} ({cosines[index, at - start]:.2f})".strip()
            neighbours.append(Shown(answers[at], line, other == label if classes else None))
        lines.append((Shown(question, _name(label, classes)), neighbours))
    return lines


def draw_neighbours(rows: list[tuple[Shown, list[Shown]]], path: Path) -> None:
    """Write a PNG with a row for each query: itself, then its neighbours, the nearest first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 + max(len(neighbours) for _, neighbours in rows)
    height = _ROW * len(rows) + 2 * _MARGIN
    figure = Figure(figsize=(_CELL * columns, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    # By hand: layouts that matplotlib finds measure every picture several times.
    margin = _MARGIN / height
    figure.subplots_adjust(0.01, 1.4 * margin, 0.99, 1 - 0.6 * margin, wspace=0.08, hspace=0.2)
    for axis in axes.ravel():
        axis.set_axis_off()
    axes[0, 0].set_title("query", fontsize=9)
    axes[0, 1].set_title("nearest", fontsize=9)
    for line, (query, neighbours) in zip(axes, rows, strict=True):
        _show(line[0], query)
        for axis, neighbour in zip(line[1:], neighbours, strict=False):
            _show(axis, neighbour)
    known = any(shown.right is not None for _, neighbours in rows for shown in neighbours)
    labels = "; full blue frame: of the query's class, dashed orange: of another" if known else ""
    caption = f"In brackets: the cosine of the features{labels}."
    figure.text(0.5, 0.2 * margin, caption, ha="center", va="bottom", fontsize=8)
    write_png(figure, path)


def _show(axis: Any, shown: Shown) -> None:
    axis.imshow(as_rgb(shown.pixels), interpolation="nearest")
    axis.set_axis_on()
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(shown.line, fontsize=7)
    colour, style = _RIGHT if shown.right else _WRONG
    framed = shown.right is not None
    axis.spines[:].set(visible=framed, edgecolor=colour, linestyle=style, linewidth=2.5)


def _views(images: LabelledSplit, arm: FrozenArm, runtime: RuntimeParams) -> list[NDArray]:
    """Return the images (H, W, C) as stored, in the frame that the encoder sees."""
    loader = images.batches(arm, runtime.workers, len(images))
    return [view for batch in loader for view in batch.images.permute(0, 2, 3, 1).numpy()]


def _name(label: int, classes: Sequence[str]) -> str:
    """Return a class's name, the end of a long one cut off; '' where it is not known."""
    if not classes or label < 0:
        return ""
    name = classes[label]
    return name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
