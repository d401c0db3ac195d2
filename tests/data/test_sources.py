"""Folders and COCO files of every layout are understood, or refused with a word."""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mae.data import reasons
from mae.data.coco import open_coco
from mae.data.folder import open_folder
from mae.data.records import Record, Rejected, Source
from mae.data.splits import split_of
from mae.errors import DataError
from mae.params import SplitParams
from tests.data import zoo

LARGE = 10**8


def records(source: Source) -> list[Record]:
    return [item for item in source.items if isinstance(item, Record)]


def place(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zoo.png(zoo.pattern(10, 12, seed=number)))


def test_flat_folder_has_no_labels_and_no_splits(tmp_path: Path) -> None:
    place(tmp_path, "b.png", "a.png", "c.PNG")
    source = open_folder(tmp_path, LARGE)
    found = records(source)
    assert [record.id for record in found] == ["a.png", "b.png", "c.PNG"]
    assert {(record.label, record.split) for record in found} == {(None, None)}
    assert source.carve == ("val", "test")


def test_class_folders_give_labels_and_loose_images_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place(tmp_path, "cat/1.png", "dog/deep/2.png", "loose.png")
    with caplog.at_level(logging.INFO):
        source = open_folder(tmp_path, LARGE)
    assert {record.id: record.label for record in records(source)} == {
        "cat/1.png": "cat",
        "dog/deep/2.png": "dog",
        "loose.png": None,
    }
    assert source.classes == ("cat", "dog")
    assert "2 class folders (cat, dog)" in caplog.text
    assert "no label" in caplog.text


def test_one_folder_alone_is_no_class(tmp_path: Path) -> None:
    place(tmp_path, "images/1.png", "images/2.png")
    source = open_folder(tmp_path, LARGE)
    assert {record.label for record in records(source)} == {None}
    assert source.classes == ()


def test_three_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    place(tmp_path, *(f"{s}/{c}/1.png" for s in ("train", "valid", "test") for c in "xy"))
    source = open_folder(tmp_path, LARGE)
    splits = {record.id.split("/")[0]: record.split for record in records(source)}
    assert splits == {"train": "train", "valid": "val", "test": "test"}
    assert source.carve == ()
    assert source.classes == ("x", "y")


def test_val_alone_becomes_test_and_val_is_carved_from_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place(tmp_path, *(f"Train/{n}.png" for n in range(60)), "Val/0.png")
    with caplog.at_level(logging.INFO):
        source = open_folder(tmp_path, LARGE)
    shares = SplitParams(val=0.3, test=0.3)
    splits = Counter(split_of(record, shares, source.carve) for record in records(source))
    assert splits["test"] == 1
    assert 5 < splits["val"] < 35
    assert "Val/ is test" in caplog.text
    assert "val taken from train" in caplog.text


def test_images_outside_the_split_folders_are_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place(tmp_path, "train/1.png", "test/1.png", "extra/1.png", "loose.png")
    with caplog.at_level(logging.WARNING):
        open_folder(tmp_path, LARGE)
    assert "2 images outside test, train are not used" in caplog.text


def test_hidden_and_other_files_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place(tmp_path, "a.png", ".hidden.png", "__MACOSX/a.png", ".cache/a.png")
    for name in (".DS_Store", "Thumbs.db", "labels.csv", "README.md"):
        (tmp_path / name).write_text("x")
    with caplog.at_level(logging.INFO):
        assert [record.id for record in records(open_folder(tmp_path, LARGE))] == ["a.png"]
    assert "2 files that are no images" in caplog.text


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    place(tmp_path / "elsewhere", "1.png")
    place(tmp_path / "root", "a/1.png")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "again").symlink_to(tmp_path / "root")
    names = [record.id for record in records(open_folder(tmp_path / "root", LARGE))]
    assert "a/1.png" in names
    assert "b/1.png" in names
    assert len(names) < 10


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no image files"),
        (["notes.txt"], "holds no image files"),
        (["val/1.png", "test/1.png"], "no train folder"),
        (["train/1.png", "val/1.png", "valid/1.png"], "two folders for one split"),
    ],
)
def test_folders_that_cannot_be_used_say_why(
    tmp_path: Path, names: list[str], message: str
) -> None:
    place(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        list(open_folder(tmp_path, LARGE).items)


def test_missing_folder_names_the_knob(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist.*data\.images\.path"):
        open_folder(tmp_path / "nowhere", LARGE)


def test_a_file_too_long_to_be_an_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(1 << 32)
    (found,) = open_folder(tmp_path, LARGE).items
    assert isinstance(found, Rejected)
    assert found.reason == reasons.TOO_LARGE


# --- splits by hash ---------------------------------------------------------------------------


def test_hash_splits_keep_their_shares_and_never_move() -> None:
    shares = SplitParams(val=0.1, test=0.2)
    names = [f"{n}.png" for n in range(4000)]
    splits = {name: split_of(Record(name, b""), shares, ("val", "test")) for name in names}
    counts = Counter(splits.values())
    assert abs(counts["val"] / 4000 - 0.1) < 0.02
    assert abs(counts["test"] / 4000 - 0.2) < 0.02
    wider = SplitParams(val=0.3, test=0.2)
    for name, split in splits.items():
        assert split_of(Record(name, b""), wider, ("val", "test")) == split or split == "train"


def test_a_group_is_never_divided() -> None:
    shares = SplitParams(val=0.3, test=0.3)
    for group in "abcdefgh":
        members = [Record(f"{group}{n}", b"", group=group) for n in range(20)]
        assert len({split_of(member, shares, ("val", "test")) for member in members}) == 1


# --- COCO -------------------------------------------------------------------------------------


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
    place(root / folder, "y.png", "x.png")
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
    source = open_coco(tmp_path, LARGE)
    assert source.categories == ("a", "b")
    assert source.carve == ("val",)
    found = records(source)
    assert [record.id for record in found] == [f"{f}/{n}.png" for f in folders for n in "xy"]
    assert [record.split for record in found] == [None, None, "test", "test"]
    bare, marked = found[0], found[1]
    assert bare.annotations == []
    assert marked.annotations is not None
    assert [one["category"] for one in marked.annotations] == ["a", "a"]
    assert [one["iscrowd"] for one in marked.annotations] == [0, 1]
    assert isinstance(marked.annotations[1]["segmentation"]["counts"], str)
    assert marked.drawn_on == (10, 12)


def test_coco_prefers_instances_to_captions(tmp_path: Path) -> None:
    write_coco(tmp_path, "instances_train2017.json", "train2017")
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    assert len(records(open_coco(tmp_path, LARGE))) == 2


def test_coco_image_that_is_not_there_is_quarantined(tmp_path: Path) -> None:
    write_coco(tmp_path, "train.json", "train")
    (tmp_path / "train" / "y.png").unlink()
    rejected = [item for item in open_coco(tmp_path, LARGE).items if isinstance(item, Rejected)]
    assert [(item.id, item.reason) for item in rejected] == [("train/y.png", reasons.MISSING)]


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
        list(open_coco(tmp_path, LARGE).items)


def test_coco_without_annotations_folder_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no annotations/ folder"):
        open_coco(tmp_path, LARGE)


def test_real_coco_is_read_whole(real_data: Path) -> None:
    source = open_coco(real_data / "coco-small", LARGE)
    found = records(source)
    assert len(found) == 80
    assert source.categories is not None
    assert len(source.categories) == 80
    annotations = [one for record in found for one in record.annotations or ()]
    assert len(annotations) == 429 + 437
    assert sum(one["iscrowd"] for one in annotations) == 14
    assert np.isfinite([one["bbox"] for one in annotations]).all()
