"""Pascal VOC: lists, boxes and difficult objects as their XML says them."""

from pathlib import Path

import pytest

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Source
from mae.data.sources.opening import open_tree
from mae.data.sources.voc import open_voc
from mae.errors import DataError
from tests.data.sources.listing import HOW, images, place, records, rejected, tarred

OBJECT = """<object><name> dog </name><difficult>{difficult}</difficult><truncated>0</truncated>
<bndbox><xmax>8</xmax><xmin>1</xmin><ymin>2</ymin><ymax>10.0</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>
</part></object>"""


def xml(*objects: str) -> bytes:
    size = "<size><width>12</width><height>10</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(objects)}</annotation>".encode()


def dataset(prefix: str = "") -> dict[str, bytes]:
    content = {
        f"{prefix}JPEGImages/{name}": data for name, data in images("a.png", "b.png").items()
    }
    content |= {f"{prefix}Annotations/{name}.xml": xml(OBJECT.format(difficult=0)) for name in "ab"}
    return content


def lists(prefix: str = "", **names: str) -> dict[str, bytes]:
    return {f"{prefix}ImageSets/Main/{split}.txt": text.encode() for split, text in names.items()}


def open_at(path: Path) -> Source:
    return open_voc(open_tree(str(path), HOW))


def test_boxes_count_from_zero_and_include_the_last_pixel(tmp_path: Path) -> None:
    place(tmp_path, dataset())
    source = open_at(tmp_path)
    assert source.carve == ("val", "test")
    first = records(source)[0]
    assert (first.id, first.split) == ("JPEGImages/a.png", None)
    assert first.read_annotations() == [
        {
            "category": "dog",
            "bbox": [0, 1, 8, 9],
            "segmentation": [],
            "area": 72,
            "iscrowd": 0,
        }
    ]


def test_difficult_objects_are_kept_and_marked(tmp_path: Path) -> None:
    place(tmp_path, dataset())
    place(
        tmp_path, {"Annotations/a.xml": xml(OBJECT.format(difficult=1)), "Annotations/b.xml": xml()}
    )
    a, b = records(open_at(tmp_path))
    assert [(one["difficult"], one["iscrowd"]) for one in a.read_annotations() or ()] == [(1, 0)]
    assert b.read_annotations() == []


@pytest.mark.parametrize(
    ("given", "splits", "carve"),
    [
        ({"train": "a\n", "val": "b\n"}, {"a": None, "b": "test"}, ("val",)),
        ({"trainval": "a\nb\n", "train": "a", "val": "b"}, {"a": None, "b": "test"}, ("val",)),
        ({"trainval": "a\n", "test": "b\n"}, {"a": None, "b": "test"}, ("val",)),
        ({"train": "a  1\n\n"}, {"a": None}, ("val", "test")),
    ],
)
def test_lists_are_splits(
    tmp_path: Path, given: dict[str, str], splits: dict[str, str], carve: tuple[str, ...]
) -> None:
    place(tmp_path, {**dataset(), **lists(**given)})
    source = open_at(tmp_path)
    found = {Path(record.id).stem: record.split for record in records(source)}
    assert found == splits
    assert source.carve == carve


def test_the_archive_as_it_is_handed_out(tmp_path: Path) -> None:
    content = {**dataset("VOCdevkit/VOC2007/"), **lists("VOCdevkit/VOC2007/", train="a", val="b")}
    place(tmp_path, {"VOC.tar": tarred(content)})
    assert [record.id for record in records(open_at(tmp_path / "VOC.tar"))] == [
        "JPEGImages/a.png",
        "JPEGImages/b.png",
    ]


def test_several_years_in_one_folder(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        place(tmp_path, {**dataset(f"{year}/"), **lists(f"{year}/", train="a", val="b")})
    found = {record.id: record.split for record in records(open_at(tmp_path))}
    assert found == {
        f"{year}/JPEGImages/{name}.png": split
        for year in ("VOC2007", "VOC2012")
        for name, split in (("a", None), ("b", "test"))
    }


def test_what_is_missing_is_rejected(tmp_path: Path) -> None:
    place(tmp_path, {**dataset(), **lists(train="a\nb\nc\n")})
    (tmp_path / "Annotations" / "b.xml").unlink()
    assert rejected(open_at(tmp_path).items) == {
        "JPEGImages/b.png": reasons.BAD_ANNOTATION,
        "JPEGImages/c": reasons.MISSING,
    }


BOMB = b"""<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""
READS_A_FILE = b"""<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>
<annotation><object><name>&f;</name></object></annotation>"""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "DOCTYPE"),
        (READS_A_FILE, "DOCTYPE"),
        (b"", "malformed"),
        (b"<annotation>", "malformed"),
        (b"\xff\xfe\x00", "malformed"),
        (xml("<object><name>dog</name></object>"), "no bndbox"),
        (xml("<object><bndbox/></object>"), "no name"),
        (xml("<object><name>dog</name><bndbox><xmin>1</xmin></bndbox></object>"), "lacks a side"),
        (xml(OBJECT.format(difficult=0).replace("8", "eight")), "eight"),
    ],
)
def test_xml_that_cannot_be_used_is_a_fault(tmp_path: Path, content: bytes, message: str) -> None:
    place(tmp_path, {**dataset(), "Annotations/a.xml": content})
    with pytest.raises(ImageFault, match=message) as caught:
        records(open_at(tmp_path))[0].read_annotations()
    assert caught.value.reason == reasons.BAD_ANNOTATION


def test_folders_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no JPEGImages/ folder.*data\.scenes\.path"):
        open_at(tmp_path)
    place(tmp_path, {"JPEGImages/a.png": b"x"})
    with pytest.raises(DataError, match="no Annotations/ folder"):
        open_at(tmp_path)
    place(tmp_path, {**dataset(), **lists(test="a")})
    with pytest.raises(DataError, match="not train"):
        open_at(tmp_path)
