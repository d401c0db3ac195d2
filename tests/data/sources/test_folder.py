"""Folders of every layout are understood, or refused with a word."""

import logging
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Record, Source
from mae.data.sources.folder import open_folder
from mae.data.sources.opening import open_tree
from mae.errors import DataError
from tests.data import zoo
from tests.data.sources.listing import HOW, LIMIT, images, place, records, rejected


def open_at(path: Path | str) -> Source:
    return open_folder(open_tree(str(path), HOW))


def fill(root: Path, *names: str) -> None:
    place(root, images(*names))


def test_flat_folder_has_no_labels_and_no_splits(tmp_path: Path) -> None:
    fill(tmp_path, "b.png", "a.png", "c.PNG")
    source = open_at(tmp_path)
    found = records(source)
    assert [record.id for record in found] == ["a.png", "b.png", "c.PNG"]
    assert {(record.label, record.split) for record in found} == {(None, None)}
    assert source.carve == ("val", "test")


def test_class_folders_give_labels_and_loose_images_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, "cat/1.png", "dog/deep/2.png", "loose.png")
    with caplog.at_level(logging.INFO):
        source = open_at(tmp_path)
    assert {record.id: record.label for record in records(source)} == {
        "cat/1.png": "cat",
        "dog/deep/2.png": "dog",
        "loose.png": None,
    }
    assert source.classes == ("cat", "dog")
    assert "2 class folders (cat, dog)" in caplog.text
    assert "no label" in caplog.text


def test_one_folder_alone_is_no_class(tmp_path: Path) -> None:
    fill(tmp_path, "images/1.png", "images/2.png")
    source = open_at(tmp_path)
    assert {record.label for record in records(source)} == {None}
    assert source.classes == ()


def test_three_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{s}/{c}/1.png" for s in ("train", "valid", "test") for c in "xy"))
    source = open_at(tmp_path)
    splits = {record.id.split("/")[0]: record.split for record in records(source)}
    assert splits == {"train": "train", "valid": "val", "test": "test"}
    assert source.carve == ()
    assert source.classes == ("x", "y")


def test_val_alone_becomes_test_and_val_is_carved_from_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, *(f"Train/{n}.png" for n in range(3)), "Val/0.png")
    with caplog.at_level(logging.INFO):
        source = open_at(tmp_path)
    assert {record.id: record.split for record in records(source)} == {
        "Train/0.png": None,
        "Train/1.png": None,
        "Train/2.png": None,
        "Val/0.png": "test",
    }
    assert source.carve == ("val",)
    assert "Val/ is test" in caplog.text
    assert "val taken from train" in caplog.text


def test_images_outside_the_split_folders_are_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, "train/1.png", "test/1.png", "extra/1.png", "loose.png")
    with caplog.at_level(logging.WARNING):
        open_at(tmp_path)
    assert "2 images outside test, train are not used" in caplog.text


def test_hidden_and_other_files_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, "a.png", ".hidden.png", "__MACOSX/a.png", ".cache/a.png")
    for name in (".DS_Store", "Thumbs.db", "labels.csv", "README.md"):
        (tmp_path / name).write_text("x")
    with caplog.at_level(logging.INFO):
        assert [record.id for record in records(open_at(tmp_path))] == ["a.png"]
    assert "2 files that are no images" in caplog.text


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "1.png")
    fill(tmp_path / "root", "a/1.png")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "again").symlink_to(tmp_path / "root")
    names = [record.id for record in records(open_at(tmp_path / "root"))]
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
    fill(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        list(open_at(tmp_path).items)


def test_missing_folder_names_the_knob(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist.*data\.images\.path"):
        open_at(tmp_path / "nowhere")
    (tmp_path / "list.csv").write_text("path\n")
    with pytest.raises(DataError, match="is a table"):
        open_at(tmp_path / "list.csv")
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(DataError, match="neither a folder nor a zip"):
        open_at(tmp_path / "model.bin")


def test_what_cannot_be_read_says_why_when_it_is_read(tmp_path: Path) -> None:
    fill(tmp_path, "good.png")
    (tmp_path / "lost.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(LIMIT + 1)
    (tmp_path / "gone.png").write_bytes(b"x")
    found = {record.id: record for record in records(open_at(tmp_path))}
    (tmp_path / "gone.png").unlink()
    assert found.pop("good.png").image.stamp()
    faults = {}
    for name, record in found.items():
        with pytest.raises(ImageFault) as caught:
            record.image.read()
        faults[name] = caught.value.reason
    assert faults == {
        "lost.jpg": reasons.DANGLING_LINK,
        "folder.jpg": reasons.UNREADABLE,
        "pipe.jpg": reasons.UNREADABLE,
        "huge.png": reasons.TOO_LARGE,
        "gone.png": reasons.MISSING,
    }


def test_formats_that_are_not_read_are_rejected_by_name(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.heic")
    assert rejected(open_at(tmp_path).items) == {"b.heic": reasons.UNSUPPORTED}


def test_names_that_are_no_utf_8_are_shown_as_text(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(zoo.png(zoo.pattern(10, 12)))
    (record,) = records(open_at(tmp_path))
    assert record.id == r"caf\xe9.png"
    assert record.image.read().startswith(b"\x89PNG")


part = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.lists(part, max_size=2), part), min_size=1, max_size=8))
def test_ids_are_the_sorted_paths_whatever_the_names(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[list[str], str]]
) -> None:
    root = tmp_path_factory.mktemp("names")
    for folders, name in drawn:
        path = root.joinpath(*(f"f{folder}_" for folder in folders), f"n{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    expected = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    items = list(open_at(root).items)
    assert all(isinstance(item, Record) for item in items)
    assert [item.id for item in items] == expected
