"""Tables list images; what is wrong with one is said with its line."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Source
from mae.data.sources import parquet
from mae.data.sources.opening import Opening
from mae.data.sources.table import open_table
from mae.errors import DataError
from tests.data.sources.listing import HOW, LIMIT, contents, images, place, records, rejected

A, B = images("a", "b").values()


def open_csv(folder: Path, text: str, name: str = "list.csv") -> Source:
    place(folder, {"x/a.png": A, "b.png": B, name: text.encode()})
    return open_table(str(folder / name), HOW)


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_columns_of_a_csv_are_what_is_known(tmp_path: Path) -> None:
    text = """Path,label,split,group,site,id
x/a.png,cat,train,p1,left,first
b.png,7,val,,"right, far",
b.png,,test,p2,,third
"""
    source = open_csv(tmp_path, text)
    found = records(source)
    assert [(one.id, one.label, one.split, one.group) for one in found] == [
        ("first", "cat", "train", "p1"),
        ("b.png", "7", "val", None),
        ("third", None, "test", "p2"),
    ]
    assert [one.columns["site"] for one in found] == ["left", "right, far", ""]
    assert [one.image.read() for one in found] == [A, B, B]
    assert source.carve == ()


@pytest.mark.parametrize("column", ["path", "image", "file_name", "FileName"])
@pytest.mark.parametrize("between", [",", ";", "\t", "|"])
def test_names_and_separators_that_people_use(tmp_path: Path, column: str, between: str) -> None:
    text = f"\ufeff{column}{between}label\r\nb.png{between}cat\r\n\r\n"
    (found,) = records(open_csv(tmp_path, text))
    assert (found.id, found.label) == ("b.png", "cat")


def test_paths_below_absolute_and_urls(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/bucket/c.png", b"c")
    text = f"path\n{tmp_path}/x/a.png\n./b.png\nmemory://bucket/c.png\ngone.png\nphoto.heic\n"
    items = list(open_csv(tmp_path, text).items)
    assert [item.id for item in items] == [
        "x/a.png",
        "./b.png",
        "memory://bucket/c.png",
        "gone.png",
        "photo.heic",
    ]
    assert [item.image.read() for item in items[:3]] == [A, B, b"c"]
    assert rejected(items) == {"photo.heic": reasons.UNSUPPORTED}
    with pytest.raises(ImageFault, match="missing"):
        items[3].image.read()


def test_a_table_behind_a_url() -> None:
    files = fsspec.filesystem("memory")
    files.pipe({"/set/x/a.png": A, "/set/list.csv": b"path,label\nx/a.png,cat\n"})
    (found,) = records(open_table("memory://set/list.csv", HOW))
    assert (found.id, found.label, found.image.read()) == ("x/a.png", "cat", A)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\nb.png,cat\n", "no column `path`.*name, label"),
        ("path,label\nb.png,cat\n,cat\n", "line 3 names no image"),
        ("path,split\nb.png,sometimes\n", "line 2: split 'sometimes'"),
        ("path,label\nb.png\n", "line 2 has other than the 2 cells"),
        ("path,label\nb.png,cat,dog\n", "line 2 has other than the 2 cells"),
        ('path,label\n"b.png,cat\n', "no CSV table"),
        ("path,split\nb.png,val\n", "has val but no train"),
        ("path,label\n", "lists no images"),
        ("", "lists no images"),
    ],
)
def test_faults_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(open_csv(tmp_path, text).items)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"path\n\xff\xfe\n")
    with pytest.raises(DataError, match="no CSV table in UTF-8"):
        open_table(str(tmp_path / "a.csv"), HOW)
    (tmp_path / "a.parquet").write_bytes(b"words")
    with pytest.raises(DataError, match="no whole Parquet file"):
        open_table(str(tmp_path / "a.parquet"), HOW)
    for name in ("none.csv", "none.parquet", "a.xlsx"):
        with pytest.raises(DataError, match=name):
            open_table(str(tmp_path / name), HOW)


def test_names_of_files_give_the_split_and_rows_may_say_another(tmp_path: Path) -> None:
    place(tmp_path, {"b.png": B, "train.csv": b"path,split,id\nb.png,,1\nb.png,test,2\n"})
    place(tmp_path, {"validation.csv": b"path,id\nb.png,3\n"})
    source = open_table(str(tmp_path), HOW)
    assert {one.id: one.split for one in records(source)} == {"1": "train", "2": "test", "3": "val"}


def test_paths_in_parquet_and_numbers_beside_empty_cells(tmp_path: Path) -> None:
    place(tmp_path, {"b.png": B})
    columns = {"path": ["b.png"] * 3, "id": ["1", "2", "3"], "label": [1.0, None, 2.5]}
    source = open_table(str(write_parquet(tmp_path / "t.parquet", columns)), HOW)
    assert [one.label for one in records(source)] == ["1", None, "2.5"]
    assert contents(source) == {}  # an iterator is walked once


@pytest.mark.parametrize("nested", [True, False])
def test_bytes_in_parquet_are_read_by_row(tmp_path: Path, nested: bool) -> None:
    pictures = list(images(*(str(number) for number in range(11))).values())
    cells = [{"bytes": one, "path": "x.png"} for one in pictures] if nested else pictures
    columns = {"image": cells, "label": list(range(11)), "site": ["x"] * 11}
    path = write_parquet(tmp_path / "train-0.parquet", columns, row_group_size=4)
    found = records(open_table(str(path), HOW))
    assert [one.id for one in found] == [f"train-0/{number:08d}" for number in range(11)]
    for one, expected in reversed(list(zip(found, pictures, strict=True))):
        assert one.image.read() == expected
    assert dict(found[0].columns) == {"site": "x"}


def test_names_of_classes_come_from_the_schema(tmp_path: Path) -> None:
    table = pa.table({"image": [A, B, A], "label": [1, 0, -1]})
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(about), tmp_path / "a.parquet")
    source = open_table(str(tmp_path / "a.parquet"), HOW)
    assert source.classes == ("cat", "dog")
    assert [one.label for one in records(source)] == ["dog", "cat", None]


def test_cells_that_hold_no_image_are_faults(tmp_path: Path) -> None:
    columns = {"image": [A, None, bytes(LIMIT + 1)]}
    found = records(open_table(str(write_parquet(tmp_path / "a.parquet", columns)), HOW))
    assert found[0].image.read() == A
    for one, reason in zip(found[1:], (reasons.MISSING, reasons.TOO_LARGE), strict=True):
        with pytest.raises(ImageFault) as caught:
            one.image.read()
        assert caught.value.reason == reason


def test_row_groups_too_large_to_read_for_one_image_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"image": [A, B]})
    monkeypatch.setattr(parquet, "_MOST_GROUP_BYTES", 100)
    with pytest.raises(DataError, match="write the file with smaller ones"):
        open_table(str(path), HOW)


def test_several_columns_of_bytes_need_a_name(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"left": [A], "right": [B]})
    with pytest.raises(DataError, match="name one `image`"):
        open_table(str(path), HOW)
    path = write_parquet(tmp_path / "b.parquet", {"left": [A], "image": [B]})
    (found,) = records(open_table(str(path), Opening(LIMIT, "")))
    assert found.image.read() == B
