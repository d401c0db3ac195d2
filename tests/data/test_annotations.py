import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mae.data.annotations import draw_mask, keep_sound
from mae.data.reasons import ImageFault


def mark(**changes: object) -> dict:
    return {
        "category": "thing",
        "bbox": [2.0, 3.0, 4.0, 5.0],
        "segmentation": [],
        "area": 20.0,
        "iscrowd": 0,
        **changes,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": []},
        {"bbox": [1, 2, 0, 4]},
        {"bbox": [1, 2, float("nan"), 4]},
        {"bbox": [50, 2, 4, 4]},
        {"bbox": [-9, 2, 4, 4]},
        {"segmentation": {"size": [10, 12], "counts": "garbage!"}},
    ],
)
def test_marks_without_extent_are_dropped(changes: dict) -> None:
    good = mark()
    assert keep_sound([mark(**changes), good], 10, 12, None) == [good]


def test_polygons_of_two_corners_are_left_out() -> None:
    (kept,) = keep_sound([mark(segmentation=[[1, 1, 5, 5], [1, 1, 5, 1, 5, 5]])], 10, 12, None)
    assert kept["segmentation"] == [[1, 1, 5, 1, 5, 5]]


@pytest.mark.parametrize("where", ["stated", "run lengths"])
def test_marks_drawn_on_another_shape_condemn_the_image(where: str) -> None:
    lengths = coco_mask.encode(np.asfortranarray(np.ones((12, 10), np.uint8)))
    lengths = {"size": [12, 10], "counts": lengths["counts"].decode()}
    marks = [mark(segmentation=lengths)] if where == "run lengths" else [mark()]
    with pytest.raises(ImageFault, match="12 x 10"):
        keep_sound(marks, 10, 12, (12, 10) if where == "stated" else None)


def test_masks_of_polygon_run_lengths_and_box() -> None:
    truth = np.zeros((10, 12), np.uint8)
    truth[3:8, 2:6] = 1
    packed = coco_mask.encode(np.asfortranarray(truth))
    lengths = {"size": [10, 12], "counts": packed["counts"].decode()}
    corners = [[2, 3, 6, 3, 6, 8, 2, 8]]
    for segmentation in (lengths, corners, []):
        drawn = draw_mask(mark(segmentation=segmentation), 10, 12)
        assert np.array_equal(drawn, truth)
        assert drawn.dtype == np.uint8
