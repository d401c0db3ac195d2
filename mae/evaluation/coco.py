"""COCO average precision of boxes and masks, computed by pycocotools."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mae.data.annotations import draw_mask
from mae.errors import DataError

Kind = Literal["bbox", "segm"]

# Like an annotation of mae.data.records, with a "score" and without "area" and "iscrowd".
Detection = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """What is true of an image of height x width: its annotations, crowds included."""

    height: int
    width: int
    annotations: list[dict[str, Any]]


@dataclass(frozen=True)
class AveragePrecision:
    """The COCO summary, shares from 0 to 1; None where no object is of that extent.

    ap is the mean over IoU .50 to .95, ap_50 and ap_75 are at one IoU; small is below 32 x 32
    pixels and large above 96 x 96. recall is the average recall at 100 detections an image.
    per_category holds only the categories that occur in the truth: only those are counted.
    """

    ap: float
    ap_50: float
    ap_75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    recall: float
    per_category: dict[str, float]


def average_precision(
    scenes: Sequence[Scene], detections: Sequence[Sequence[Detection]], kind: Kind
) -> AveragePrecision:
    """Match `detections[i]` with `scenes[i]`, by box ("bbox") or by mask ("segm").

    An object in a crowd may match any number of detections and counts for none. Raises DataError
    when nothing but crowds is annotated: there is nothing to measure against.
    """
    from pycocotools.cocoeval import COCOeval

    if not has_objects(scenes):
        raise DataError(
            "no object is annotated in these images, so there is nothing to measure detections "
            "against: see data.splits in params.yaml"
        )
    names = {one["category"] for scene in scenes for one in scene.annotations}
    names |= {one["category"] for found in detections for one in found}
    categories = {name: number for number, name in enumerate(sorted(names), 1)}
    images = [
        {"id": number, "height": scene.height, "width": scene.width}
        for number, scene in enumerate(scenes, 1)
    ]
    truth = [
        _truth(one, categories, image, kind)
        for image, scene in zip(images, scenes, strict=True)
        for one in scene.annotations
    ]
    found = [
        _detection(one, categories, image, kind)
        for image, ones in zip(images, detections, strict=True)
        for one in ones
    ]
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress and its table
        evaluation = COCOeval(
            _as_coco(images, categories, truth), _as_coco(images, categories, found), kind
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return _summary(evaluation, categories)


def has_objects(scenes: Sequence[Scene]) -> bool:
    """Whether any scene has an object that is no crowd."""
    return any(not one["iscrowd"] for scene in scenes for one in scene.annotations)


def _truth(
    annotation: dict[str, Any], categories: dict[str, int], image: dict[str, int], kind: Kind
) -> dict[str, Any]:
    return {
        "image_id": image["id"],
        "category_id": categories[annotation["category"]],
        "bbox": annotation["bbox"],
        "area": annotation["area"],
        "iscrowd": annotation["iscrowd"],
        **({"segmentation": _run_lengths(annotation, image)} if kind == "segm" else {}),
    }


def _detection(
    detection: Detection, categories: dict[str, int], image: dict[str, int], kind: Kind
) -> dict[str, Any]:
    """The area decides between small, medium and large: that of the box or of the mask."""
    from pycocotools import mask as coco_mask

    row = {
        "image_id": image["id"],
        "category_id": categories[detection["category"]],
        "bbox": detection["bbox"],
        "score": detection["score"],
        "iscrowd": 0,
    }
    if kind == "bbox":
        return {**row, "area": detection["bbox"][2] * detection["bbox"][3]}
    mask = _run_lengths(detection, image)
    return {**row, "segmentation": mask, "area": float(coco_mask.area(mask))}


def _run_lengths(one: dict[str, Any], image: dict[str, int]) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    if isinstance(one["segmentation"], dict):
        return one["segmentation"]
    return coco_mask.encode(np.asfortranarray(draw_mask(one, image["height"], image["width"])))


def _as_coco(
    images: list[dict[str, int]], categories: dict[str, int], rows: list[dict[str, Any]]
) -> Any:
    """Return pycocotools' index. Its own loadRes fails on no detections and takes a mask's area
    from the box beside it."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": images,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        # COCOeval takes id 0 for "matched nothing", so ids start at 1.
        "annotations": [{**row, "id": number} for number, row in enumerate(rows, 1)],
    }
    coco.createIndex()
    return coco


def _summary(evaluation: Any, categories: dict[str, int]) -> AveragePrecision:
    stats = [None if value < 0 else float(value) for value in evaluation.stats]
    # precision: (IoU, recall, category, extent, detections per image); -1 where nothing is true.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_category = {
        name: float(precision[:, :, number - 1].mean())
        for name, number in categories.items()
        if (precision[:, :, number - 1] >= 0).any()
    }
    return AveragePrecision(
        ap=stats[0] or 0.0,
        ap_50=stats[1] or 0.0,
        ap_75=stats[2] or 0.0,
        ap_small=stats[3],
        ap_medium=stats[4],
        ap_large=stats[5],
        recall=stats[8] or 0.0,
        per_category=per_category,
    )
