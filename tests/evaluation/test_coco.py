"""COCO average precision: a published table, a sum by hand, crowds, and nothing found."""

import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as coco_mask

from mae.errors import DataError
from mae.evaluation.coco import AveragePrecision, Kind, Scene, average_precision

ORACLE = Path(__file__).parents[3] / "shared" / "data" / "coco-eval-oracle"


def square(
    x: float, y: float, category: str = "cat", side: float = 20, iscrowd: int = 0
) -> dict[str, Any]:
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {
        "category": category,
        "bbox": [x, y, side, side],
        "segmentation": [corners],
        "area": side * side,
        "iscrowd": iscrowd,
    }


def found(annotation: dict[str, Any], score: float) -> dict[str, Any]:
    kept = {name: annotation[name] for name in ("category", "bbox", "segmentation")}
    return {**kept, "score": score}


def scene(*annotations: dict[str, Any]) -> Scene:
    return Scene(100, 150, list(annotations))


@pytest.mark.skipif(not ORACLE.exists(), reason=f"{ORACLE} is not here")
@pytest.mark.parametrize(
    ("kind", "file", "published"),
    [
        ("bbox", "fakebbox100", (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.595)),
        ("segm", "fakesegm100", (0.320, 0.562, 0.299, 0.387, 0.310, 0.327, 0.417)),
    ],
)
def test_published_table(kind: Kind, file: str, published: tuple[float, ...]) -> None:
    truth = json.loads((ORACLE / "instances_val2014_100.json").read_text())
    results = json.loads((ORACLE / f"results/instances_val2014_{file}_results.json").read_text())
    names = {one["id"]: one["name"] for one in truth["categories"]}
    images = {one["id"]: one for one in truth["images"]}
    annotations: dict[int, list[dict[str, Any]]] = {number: [] for number in images}
    detections: dict[int, list[dict[str, Any]]] = {number: [] for number in images}
    for one in truth["annotations"]:
        image, segmentation = images[one["image_id"]], one["segmentation"]
        if isinstance(segmentation, dict):
            segmentation = coco_mask.frPyObjects(segmentation, image["height"], image["width"])
        annotations[one["image_id"]].append(
            {**one, "category": names[one["category_id"]], "segmentation": segmentation}
        )
    for one in results:
        segmentation = one.get("segmentation", [])
        box = one.get("bbox") or coco_mask.toBbox(segmentation).tolist()
        detections[one["image_id"]].append(
            {
                "category": names[one["category_id"]],
                "bbox": box,
                "segmentation": segmentation,
                "score": one["score"],
            }
        )
    scenes = [
        Scene(image["height"], image["width"], annotations[number])
        for number, image in images.items()
    ]
    measured = average_precision(scenes, list(detections.values()), kind)
    assert tuple(round(value, 3) for value in _published_columns(measured)) == published


def _published_columns(measured: AveragePrecision) -> list[float]:
    values = [measured.ap, measured.ap_50, measured.ap_75]
    values += [v for v in (measured.ap_small, measured.ap_medium, measured.ap_large) if v]
    return [*values, measured.recall]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_all_found_is_one_and_nothing_is_printed(
    kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = [scene(square(5, 5), square(60, 30, "dog", 40)), scene(square(10, 50)), scene()]
    detections = [[found(one, 0.9) for one in each.annotations] for each in truth]
    measured = average_precision(truth, detections, kind)
    assert measured.ap == measured.ap_50 == measured.recall == pytest.approx(1)
    assert measured.per_category == {"cat": pytest.approx(1), "dog": pytest.approx(1)}
    assert measured.ap_small == pytest.approx(1) and measured.ap_large is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_precision_by_hand(kind: Kind) -> None:
    """Hit, miss, hit: precision 1 up to recall 1/2 (51 of 101 points), then 2/3."""
    truth = [scene(square(5, 5), square(60, 30))]
    detections = [
        [found(square(5, 5), 0.9), found(square(100, 70), 0.8), found(square(60, 30), 0.7)]
    ]
    measured = average_precision(truth, detections, kind)
    assert measured.ap == pytest.approx((51 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_nothing_found_is_zero(kind: Kind) -> None:
    measured = average_precision([scene(square(5, 5)), scene()], [[], []], kind)
    assert (measured.ap, measured.ap_50, measured.recall) == (0, 0, 0)
    assert measured.per_category == {"cat": 0}


def test_category_without_truth_is_not_counted() -> None:
    truth = [scene(square(5, 5))]
    detections = [[found(square(5, 5), 0.5), found(square(60, 30, "dog"), 0.9)]]
    measured = average_precision(truth, detections, "bbox")
    assert measured.ap == pytest.approx(1)
    assert set(measured.per_category) == {"cat"}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_detections_in_a_crowd_are_neither_hit_nor_miss(kind: Kind) -> None:
    for iscrowd, ap in ((1, 1.0), (0, None)):
        truth = [scene(square(5, 5), square(60, 10, side=80, iscrowd=iscrowd))]
        detections = [
            [found(square(5, 5), 0.5), found(square(70, 20), 0.9), found(square(100, 40), 0.8)]
        ]
        measured = average_precision(truth, detections, kind)
        assert measured.ap == pytest.approx(1.0) if ap else measured.ap < 0.5


def test_only_crowds_is_an_error() -> None:
    with pytest.raises(DataError, match="no object is annotated"):
        average_precision([scene(square(5, 5, iscrowd=1)), scene()], [[], []], "bbox")


def test_masks_of_every_form() -> None:
    """Polygons, run lengths and, without either, the box: the same square."""
    lengths = coco_mask.merge(coco_mask.frPyObjects(square(5, 5)["segmentation"], 100, 150))
    as_text = {"size": lengths["size"], "counts": lengths["counts"].decode()}
    truth = [scene({**square(5, 5), "segmentation": as_text})]
    for segmentation in (square(5, 5)["segmentation"], as_text, []):
        detections = [[found({**square(5, 5), "segmentation": segmentation}, 0.5)]]
        assert average_precision(truth, detections, "segm").ap == pytest.approx(1)


def test_boxes_and_masks_are_measured_apart() -> None:
    """A right box with half the mask: IoU 1 and 1/2."""
    half = [[5, 5, 15, 5, 15, 25, 5, 25]]
    detections = [[found({**square(5, 5), "segmentation": half}, 0.9)]]
    assert average_precision([scene(square(5, 5))], detections, "bbox").ap == pytest.approx(1)
    assert average_precision([scene(square(5, 5))], detections, "segm").ap == pytest.approx(0.1)
