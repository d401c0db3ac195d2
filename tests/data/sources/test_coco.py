"""COCO's layouts are understood, or refused with a word."""

import json
from pathlib import Path

import numpy as np
import pytest

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Source
from mae.data.sources.coco import open_coco
from mae.data.sources.opening import open_tree
from mae.errors import DataError
from tests.data.sources.listing import HOW, images, place, records, rejected, tarred, zipped


def open_at(path: Path) -> Source:
    return open_coco(open_tree(str(path), HOW))


def coco_json(names: list[str], **changes: object) -> dict[str, object]:
    images = [
        {"id": number, "file_name": name, "height": 10, "width": 12}
        for number, name in enumerate(names)
    ]
    annotation = {
        "id": 1,
        "image_id": 0,
        "category_id": 7,
        "bbox": [1, 2, 5, 4],
        "area": 20,
        "iscrowd": 0,
        "segmentation": [[1, 2, 6, 2, 6, 6, 1, 6]],
    }
    crowd = {
        **annotation,
        "id": 2,
        "iscrowd": 1,
        "segmentation": {"size": [10, 12], "counts": [0, 30, 90]},
    }
    return {
        "images": images,
        "annotations": [annotation, crowd],
        "categories": [{"id": 9, "name": "b"}, {"id": 7, "name": "a"}],
        **changes,
    }


def write_coco(root: Path, name: str, folder: str, **changes: object) -> None:
    place(root / folder, images("y.png", "x.png"))
    (root / "annotations").mkdir(exist_ok=True)
    content = coco_json(["y.png", "x.png"], **changes)
    (root / "annotations" / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("files", "folders"),
    [
        (("instances_train2017.json", "instances_val2017.json"), ("train2017", "val2017")),
        (("train.json", "val.json"), ("images/train", "images/val")),
        (("instances_train.json", "instances_val.json"), ("train", "val")),
        (("a_train.json", "b_test.json"), ("a_train/images", "b_test/images")),
    ],
)
def test_coco_layouts(tmp_path: Path, files: tuple[str, str], folders: tuple[str, str]) -> None:
    for file, folder in zip(files, folders, strict=True):
        write_coco(tmp_path, file, folder)
    source = open_at(tmp_path)
    assert source.categories == ("a", "b")
    assert source.carve == ("val",)
    found = records(source)
    assert [record.id for record in found] == [f"{f}/{n}.png" for f in folders for n in "xy"]
    assert [record.split for record in found] == [None, None, "test", "test"]
    bare, marked = found[0], found[1]
    assert bare.annotations == []
    marks = marked.read_annotations()
    assert marks is not None
    assert [one["category"] for one in marks] == ["a", "a"]
    assert [one["iscrowd"] for one in marks] == [0, 1]
    assert isinstance(marks[1]["segmentation"]["counts"], str)
    assert marked.drawn_on == (10, 12)


def test_coco_prefers_instances_to_captions(tmp_path: Path) -> None:
    write_coco(tmp_path, "instances_train2017.json", "train2017")
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    assert len(records(open_at(tmp_path))) == 2


def test_coco_image_that_is_not_there_says_so(tmp_path: Path) -> None:
    write_coco(tmp_path, "train.json", "train")
    (tmp_path / "train" / "y.png").unlink()
    lost = records(open_at(tmp_path))[1]
    assert lost.id == "train/y.png"
    with pytest.raises(ImageFault) as caught:
        lost.image.read()
    assert caught.value.reason == reasons.MISSING


def test_coco_as_it_is_handed_out_in_archives(tmp_path: Path) -> None:
    content = json.dumps(coco_json(["y.png", "x.png"])).encode()
    pictures = images("y.png", "x.png")
    for folder in ("train2017", "val2017"):
        packed = zipped({f"{folder}/{name}": data for name, data in pictures.items()})
        place(tmp_path, {f"{folder}.zip": packed})
    both = {f"annotations/instances_{one}2017.json": content for one in ("train", "val")}
    place(tmp_path, {"annotations_trainval2017.zip": zipped(both)})
    found = records(open_at(tmp_path))
    assert [record.id for record in found] == [
        f"{folder}/{name}.png" for folder in ("train2017", "val2017") for name in "xy"
    ]
    assert [record.image.read() for record in found] == [pictures["x.png"], pictures["y.png"]] * 2


def test_coco_in_one_archive_knows_what_is_missing(tmp_path: Path) -> None:
    content = json.dumps(coco_json(["y.png", "x.png", "gone.png", "../../out.png"])).encode()
    members = {f"set/train/{name}": data for name, data in images("y.png", "x.png").items()}
    members["set/annotations/train.json"] = content
    place(tmp_path, {"set.tar": tarred(members)})
    source = open_at(tmp_path / "set.tar")
    assert rejected(source.items) == {
        "train/gone.png": reasons.MISSING,
        "../out.png": reasons.UNSAFE,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "none of the images"),
        ({"categories": [{"id": 1, "name": "a"}]}, "category_id 7"),
        ({"annotations": [{"id": 5, "image_id": 99, "category_id": 7}]}, "image_id 99"),
        (
            {"annotations": [{"id": 5, "image_id": 0, "category_id": 7, "bbox": "abcd"}]},
            "annotation 5 is malformed",
        ),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 8, "name": "a"}]}, "share one name"),
    ],
)
def test_coco_faults_name_the_file(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    write_coco(tmp_path, "train.json", "train", **changes)
    with pytest.raises(DataError, match=message):
        list(open_at(tmp_path).items)


def test_coco_without_annotations_folder_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no annotations/ folder"):
        open_at(tmp_path)


def test_real_coco_is_read_whole(real_data: Path) -> None:
    source = open_at(real_data / "coco-small")
    found = records(source)
    assert len(found) == 80
    assert source.categories is not None
    assert len(source.categories) == 80
    annotations = [one for record in found for one in record.read_annotations() or ()]
    assert len(annotations) == 429 + 437
    assert sum(one["iscrowd"] for one in annotations) == 14
    assert np.isfinite([one["bbox"] for one in annotations]).all()
