"""What a detector found, beside what is true: one picture, and a table of categories."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae.data.annotations import draw_mask
from mae.evaluation.drawing import write_png
from mae.files import replacing_file


def draw_predictions(
    path: Path,
    images: list[NDArray],
    truths: list[list[dict[str, Any]]],
    detections: list[list[dict[str, Any]]],
) -> None:
    """Write a PNG with a row for each image (H, W, C), uint8 or uint16: truth, then detections.

    Both are annotations in the image's pixels; those of a category share a colour. As many
    detections are drawn as there are objects, the surest ones: a fixed score would show nothing
    of a detector that was trained for a short time.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted({one["category"] for found in [*truths, *detections] for one in found})
    figure = Figure(figsize=(8, 2.7 * len(images)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(images), 2, squeeze=False)
    axes[0, 0].set_title("annotated")
    axes[0, 1].set_title("detected: the surest, as many as annotated")
    for row, image, truth, found in zip(axes, images, truths, detections, strict=True):
        sure = sorted(found, key=lambda one: -one["score"])[: len(truth)]
        for axis, annotations in zip(row, (truth, sure), strict=True):
            draw_scene(axis, image, annotations, names)
    write_png(figure, path)


def draw_scene(
    axis: Any, image: NDArray, annotations: list[dict[str, Any]], names: list[str]
) -> None:
    from matplotlib.patches import Rectangle

    height, width = image.shape[:2]
    canvas = as_rgb(image)
    for annotation in annotations:
        mask = draw_mask(annotation, height, width).astype(bool)
        canvas[mask] = 0.5 * canvas[mask] + 0.5 * np.array(_colour(annotation, names))
    axis.imshow(canvas, interpolation="nearest")
    axis.set_axis_off()
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        colour = _colour(annotation, names)
        # The middle of the first pixel is at (0, 0) in the picture and (0.5, 0.5) in a box.
        corner = (x - 0.5, y - 0.5)
        axis.add_patch(Rectangle(corner, w, h, fill=False, edgecolor=colour, linewidth=1.5))
        score = f" {annotation['score']:.2f}" if "score" in annotation else ""
        axis.annotate(
            f"{annotation['category']}{score}",
            corner,
            fontsize=7,
            color="white",
            verticalalignment="bottom",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
            annotation_clip=True,
        )


def as_rgb(image: NDArray) -> NDArray:
    """(H, W, C) of any bit depth -> RGB from 0 to 1; other than 3 channels become their mean."""
    scaled = image.astype(np.float64) / np.iinfo(image.dtype).max
    if scaled.shape[2] == 3:
        return scaled
    return np.repeat(scaled.mean(axis=2, keepdims=True), 3, axis=2)


def _colour(annotation: dict[str, Any], names: list[str]) -> tuple[float, float, float]:
    """One hue for each category, so that none is a grey that a grey image swallows."""
    from matplotlib import colormaps

    return colormaps["hsv"](names.index(annotation["category"]) / len(names))[:3]


def write_category_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows, which share their keys, as CSV with four decimals."""
    with replacing_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
