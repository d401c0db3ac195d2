"""WebDataset archives: samples by key, with what their members say of them."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from mae.data import reasons
from mae.data.records import Source
from mae.data.sources.webdataset import open_webdataset
from mae.errors import DataError
from tests.data import bad_archives, zoo
from tests.data.sources.listing import HOW, images, place, records, rejected, tarred

A, B = images("a", "b").values()


def open_tar(folder: Path, members: dict[str, bytes]) -> Source:
    place(folder, {"a.tar": tarred(members)})
    return open_webdataset(str(folder / "a.tar"), HOW)


def test_written_by_the_library_itself(tmp_path: Path) -> None:
    pixels = zoo.pattern(10, 12)
    with webdataset.TarWriter(str(tmp_path / "data-000.tar")) as writer:
        for number in range(3):
            sample = {"__key__": f"s{number}", "png": pixels, "cls": number}
            writer.write({**sample, "json": {"camera": "left"}, "txt": "words"})
    found = records(open_webdataset(str(tmp_path), HOW))
    assert [(one.id, one.label) for one in found] == [
        (f"data-000/s{number}", str(number)) for number in range(3)
    ]
    assert dict(found[0].columns) == {"caption": "words", "camera": "left"}
    with Image.open(io.BytesIO(found[0].image.read())) as image:
        assert (zoo.np.asarray(image) == pixels).all()


def test_members_of_a_sample_need_not_lie_together(tmp_path: Path) -> None:
    members = {"x/a.png": A, "x/b.png": B, "x/b.cls": b"dog", "x/a.cls": b"cat\n"}
    found = records(open_tar(tmp_path, members))
    assert [(one.id, one.label, one.image.read()) for one in found] == [
        ("a/x/a", "cat", A),
        ("a/x/b", "dog", B),
    ]


def test_json_says_label_split_group_and_more(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for key, split in (("a", "train"), ("b", "Validation"), ("c", "test"), ("d", "")):
        about = {"label": 7, "split": split, "group": 12, "site": ["x", 1]}
        members |= {f"{key}.jpg": A, f"{key}.json": json.dumps(about).encode()}
    source = open_tar(tmp_path, members)
    found = records(source)
    assert [one.split for one in found] == ["train", "val", "test", None]
    assert {(one.label, one.group) for one in found} == {("7", "12")}
    assert dict(found[0].columns) == {"site": ["x", 1]}
    assert source.carve == ()


def test_names_of_archives_give_the_split(tmp_path: Path) -> None:
    place(tmp_path, {f"in-{split}-{n}.tar": tarred({"1.png": A}) for split in ("train", "val")
                     for n in range(2)})  # fmt: skip
    source = open_webdataset(f"{tmp_path}/in-*.tar", HOW)
    assert source.carve == ("val",)
    assert {one.id: one.split for one in records(source)} == {
        "in-train-0/1": None,
        "in-train-1/1": None,
        "in-val-0/1": "test",
        "in-val-1/1": "test",
    }


def test_classes_txt_names_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    members = {"a.png": A, "a.cls": b"1", "b.png": B, "b.cls": b"cat", "c.png": A, "c.cls": b"2"}
    source = open_tar(tmp_path, members)
    assert source.classes == ("cat", "dog")
    items = list(source.items)
    assert rejected(items) == {"a/c": reasons.BAD_ANNOTATION}
    assert [item.label for item in items[:2]] == ["dog", "cat"]


@pytest.mark.parametrize(
    ("members", "lost"),
    [
        ({"a.json": b"{]", "a.png": A}, {"a/a": reasons.BAD_ANNOTATION}),
        ({"a.json": b"[1]", "a.png": A}, {"a/a": reasons.BAD_ANNOTATION}),
        ({"a.json": b'{"split": "sometimes"}', "a.png": A}, {"a/a": reasons.BAD_ANNOTATION}),
        ({"a.cls": b"\xff\xfe", "a.png": A}, {"a/a": reasons.BAD_ANNOTATION}),
        ({"a.cls": b"1"}, {"a/a": reasons.MISSING}),
        ({"a.heic": b"x"}, {"a/a": reasons.UNSUPPORTED}),
        ({"../a.png": A}, {"../a.png": reasons.UNSAFE}),
    ],
)
def test_samples_that_cannot_be_used_are_rejected_alone(
    tmp_path: Path, members: dict[str, bytes], lost: dict[str, str]
) -> None:
    items = list(open_tar(tmp_path, {"good.png": B, **members}).items)
    assert rejected(items) == lost
    assert len(items) == 1 + len(lost)


def test_of_several_images_the_plain_one_is_taken(tmp_path: Path) -> None:
    (found,) = records(open_tar(tmp_path, {"1.depth.png": B, "1.jpg": A, "1.seg.png": B}))
    assert (found.id, found.image.read()) == ("a/1", A)


def test_what_is_no_sample_is_passed_over(tmp_path: Path) -> None:
    members = {"1.png": A, "README": b"x", "meta.yaml": b"x", ".hidden.png": B, "x/.b/1.png": B}
    assert [item.id for item in open_tar(tmp_path, members).items] == ["a/1"]


def test_a_key_that_comes_twice_gives_two_records(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for data in (A, B):
            info = tarfile.TarInfo("1.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    place(tmp_path, {"a.tar": buffer.getvalue()})
    found = records(open_webdataset(str(tmp_path / "a.tar"), HOW))
    assert [(one.id, one.image.read()) for one in found] == [("a/1", A), ("a/1", B)]


def test_equal_keys_of_two_archives_stay_apart(tmp_path: Path) -> None:
    place(
        tmp_path,
        {"x/1.tar": tarred({"1.png": A}), "y/1.tar.gz": gzip.compress(tarred({"1.png": B}))},
    )
    expected = {"x/1/1": A, "y/1/1": B}
    for path in (
        str(tmp_path),
        f"{tmp_path}/*/1.tar*",
        f"{tmp_path}/x/1.tar::{tmp_path}/y/1.tar.gz",
    ):
        source = open_webdataset(path, HOW)
        assert {one.id: one.image.read() for one in records(source)} == expected


def test_bad_archives_lose_only_what_is_bad(tmp_path: Path) -> None:
    content, bad = bad_archives.unsafe_tar({"good.png": A})
    place(tmp_path, {"a.tar": content})
    items = list(open_webdataset(str(tmp_path), HOW).items)
    assert [one for one in items if one.id == "a/good"]
    assert set(rejected(items).values()) == {reasons.UNSAFE}
    assert len(items) == 1 + len(bad)


@pytest.mark.parametrize("path", ["", "/*.tar", "/none-{0..3}.tar"])
def test_nothing_there_says_so(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=r"data\.images\.path"):
        open_webdataset(f"{tmp_path}{path}", HOW)


def test_one_missing_archive_of_a_range_is_noticed(tmp_path: Path) -> None:
    place(tmp_path, {f"{n}.tar": tarred({"1.png": A}) for n in (0, 2)})
    with pytest.raises(DataError, match=r"1\.tar.*not there"):
        open_webdataset(f"{tmp_path}/{{0..2}}.tar", HOW)


def test_archives_without_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lists no images"):
        open_tar(tmp_path, {"README": b"x"})
