"""Datasets saved to disk by HuggingFace's library."""

import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Source
from mae.data.sources.huggingface import open_huggingface
from mae.errors import DataError
from tests.data.sources.listing import HOW, images, place, records

A, B = images("a", "b").values()


def save(path: Path, image: list[Any] | None = None, **columns: Any) -> Path:
    found = {"image": image or [{"bytes": A, "path": None}, {"bytes": B, "path": None}]}
    rows = datasets.Dataset.from_dict(found).cast_column("image", datasets.Image())
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    rows.save_to_disk(path)
    return path


def open_at(path: Path) -> Source:
    return open_huggingface(str(path), HOW)


def test_one_dataset_without_splits_or_labels(tmp_path: Path) -> None:
    source = open_at(save(tmp_path / "d"))
    found = records(source)
    assert [(one.id, one.label, one.split) for one in found] == [
        ("all/00000000", None, None),
        ("all/00000001", None, None),
    ]
    assert [one.image.read() for one in found] == [A, B]
    assert source.carve == ("val", "test")
    assert source.classes is None


def test_groups_and_further_columns(tmp_path: Path) -> None:
    found = records(open_at(save(tmp_path / "d", group=[3, 3], site=["x", "y"])))
    assert [(one.group, dict(one.columns)) for one in found] == [
        ("3", {"site": "x"}),
        ("3", {"site": "y"}),
    ]


def test_a_selection_reads_its_own_rows(tmp_path: Path) -> None:
    save(tmp_path / "d")
    rows = datasets.load_from_disk(tmp_path / "d").select([1, 1, 0])
    rows.save_to_disk(tmp_path / "e")
    assert [one.image.read() for one in records(open_at(tmp_path / "e"))] == [B, B, A]


def test_images_by_path_were_saved_with_the_rest(tmp_path: Path) -> None:
    place(tmp_path, {"a.png": A})
    path = save(tmp_path / "d", [{"bytes": None, "path": str(tmp_path / "a.png")}, None])
    (tmp_path / "a.png").unlink()
    found = records(open_at(path))
    assert found[0].image.read() == A
    with pytest.raises(ImageFault) as caught:
        found[1].image.read()
    assert caught.value.reason == reasons.MISSING


def test_splits_that_are_none_of_ours_are_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = datasets.load_from_disk(save(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "extra": rows}).save_to_disk(tmp_path / "d")
    assert [one.id for one in records(open_at(tmp_path / "d"))] == [
        "train/00000000",
        "train/00000001",
    ]
    assert "the splits extra are not used" in caplog.text
    datasets.DatasetDict({"extra": rows}).save_to_disk(tmp_path / "e")
    with pytest.raises(DataError, match="none of them train"):
        open_at(tmp_path / "e")


def test_label_numbers_have_names_and_minus_one_is_none(tmp_path: Path) -> None:
    save(tmp_path / "d", label=[1, -1])
    rows = datasets.load_from_disk(tmp_path / "d")
    rows.cast_column("label", datasets.ClassLabel(names=["cat", "dog"])).save_to_disk(
        tmp_path / "e"
    )
    source = open_at(tmp_path / "e")
    assert source.classes == ("cat", "dog")
    assert [one.label for one in records(source)] == ["dog", None]


def test_what_is_no_saved_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist.*data\.images\.path"):
        open_at(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no dataset saved by save_to_disk"):
        open_at(tmp_path)
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match="0 image columns among text"):
        open_at(tmp_path / "d")


def test_without_the_package_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install maestro-mae\[huggingface\]"):
        open_at(tmp_path)
