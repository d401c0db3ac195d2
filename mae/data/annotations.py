"""Boxes and masks of an image: checked before they are kept, drawn when they are used."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Annotation


def keep_sound(
    annotations: list[Annotation], height: int, width: int, drawn_on: tuple[int, int] | None
) -> list[Annotation]:
    """Return the annotations that have an extent inside an image of height x width.

    Raises ImageFault when they were drawn on an image of another shape (often one whose EXIF
    orientation was ignored): then none of them can be trusted.
    """
    shapes = {tuple(drawn_on)} if drawn_on else set()
    shapes |= {
        tuple(annotation["segmentation"]["size"])
        for annotation in annotations
        if isinstance(annotation["segmentation"], dict)
    }
    for shape in shapes - {(height, width)}:
        raise ImageFault(
            reasons.BAD_ANNOTATION,
            f"annotations were drawn on {shape[0]} x {shape[1]} pixels (height x width), "
            f"but the upright image has {height} x {width}",
        )
    return [_tidy(one) for one in annotations if _is_sound(one, height, width)]


def _is_sound(annotation: Annotation, height: int, width: int) -> bool:
    box = annotation["bbox"]
    if len(box) != 4 or not all(math.isfinite(value) for value in box):
        return False
    x, y, w, h = box
    if w <= 0 or h <= 0 or x + w <= 0 or y + h <= 0 or x >= width or y >= height:
        return False
    try:
        return draw_mask(annotation, height, width).shape == (height, width)
    except (ValueError, TypeError):  # run lengths that do not add up, coordinates not numbers
        return False


def _tidy(annotation: Annotation) -> Annotation:
    """Leave out polygons without three corners, which cover nothing."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = _polygons(segmentation)
    return {**annotation, "segmentation": segmentation}


def _polygons(found: list[Any]) -> list[list[float]]:
    """Three corners or more: pycocotools would take four numbers for a box."""
    return [polygon for polygon in found if len(polygon) >= 6 and len(polygon) % 2 == 0]


def draw_mask(annotation: Annotation, height: int, width: int) -> NDArray[np.uint8]:
    """Return the mask as 0 or 1, uint8 (height, width); without a segmentation, the box."""
    from pycocotools import mask as coco_mask

    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        return coco_mask.decode(segmentation)
    polygons = _polygons(segmentation)
    if not polygons:
        return _box_mask(annotation["bbox"], height, width)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


def _box_mask(box: list[float], height: int, width: int) -> NDArray[np.uint8]:
    x, y, w, h = box
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[max(0, round(y)) : max(0, round(y + h)), max(0, round(x)) : max(0, round(x + w))] = 1
    return mask


def annotation_of(category: str, mask: NDArray[np.bool_]) -> Annotation:
    """Return the annotation of a mask (H, W): run lengths, the box around them, the area."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "category": category,
        "bbox": [float(value) for value in coco_mask.toBbox(encoded)],
        "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode()},
        "area": float(mask.sum()),
        "iscrowd": 0,
    }
