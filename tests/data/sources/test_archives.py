"""Archives are folders: whole, cut short, damaged, or made to do harm."""

import bz2
import gzip
import io
import logging
import lzma
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.records import Rejected, Source
from mae.data.sources import spool
from mae.data.sources.folder import open_folder
from mae.data.sources.opening import Opening, open_tree
from mae.errors import DataError
from tests.data import bad_archives, zoo
from tests.data.sources.listing import (
    HOW,
    contents,
    images,
    place,
    records,
    rejected,
    tarred,
    zipped,
)


def zstandard(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        for start in range(0, len(content), 1 << 16):
            stream.write(content[start : start + (1 << 16)])
    return buffer.getvalue().to_pybytes()


def tar_and(pack: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], bytes]:
    return lambda content: pack(tarred(content))


KINDS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "a.zip": zipped,
    "stored.zip": lambda content: zipped(content, zipfile.ZIP_STORED),
    "bzip2.zip": lambda content: zipped(content, zipfile.ZIP_BZIP2),
    "a.tar": tarred,
    "gnu.tar": lambda content: tarred(content, format=tarfile.GNU_FORMAT),
    "a.tar.gz": tar_and(gzip.compress),
    "a.tgz": tar_and(gzip.compress),
    "a.tar.bz2": tar_and(bz2.compress),
    "a.tar.xz": tar_and(lzma.compress),
    "a.tar.zst": tar_and(zstandard),
    "misnamed.tar": tar_and(gzip.compress),
}
NAMES = ("train/cat/1.png", "train/dog/2.png", "train/dog/ü.png", "test/cat/1.png")


def open_at(path: Path, how: Opening = HOW) -> Source:
    return open_folder(open_tree(str(path), how))


def open_bytes(folder: Path, name: str, content: bytes) -> Source:
    return open_at(place(folder, {name: content}) / name)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_the_folder_it_was_made_of(tmp_path: Path, name: str) -> None:
    pictures = images(*NAMES)
    place(tmp_path / "folder", pictures)
    source = open_bytes(tmp_path, name, KINDS[name](pictures))
    folder = open_at(tmp_path / "folder")
    assert source.classes == folder.classes == ("cat", "dog")
    assert source.layout == folder.layout
    seen = [(one.id, one.label, one.split, one.image.read()) for one in records(source)]
    assert seen == [(one.id, one.label, one.split, one.image.read()) for one in records(folder)]
    assert {identity: data for identity, _, _, data in seen} == pictures


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_a_folder_that_was_packed_whole_is_entered(tmp_path: Path, name: str) -> None:
    packed = {f"data/set/{one}": data for one, data in images(*NAMES).items()}
    packed |= {"data/README.md": b"words", "__MACOSX/data/._x.png": b"x", "data/.DS_Store": b"x"}
    found = contents(open_bytes(tmp_path, name, KINDS[name](packed)))
    assert found == images(*NAMES)


def test_a_folder_of_archives_is_a_folder_of_folders(tmp_path: Path) -> None:
    train, test = images("cat/1.png", "dog/2.png"), images("cat/3.png", "dog/4.png")
    place(
        tmp_path,
        {
            "train.zip": zipped({f"train/{name}": data for name, data in train.items()}),
            "test.tar.gz": gzip.compress(tarred(test)),
            "README.txt": b"words",
        },
    )
    source = open_at(tmp_path)
    assert source.classes == ("cat", "dog")
    assert contents(source) == {
        **{f"train/{name}": data for name, data in train.items()},
        **{f"test/{name}": data for name, data in test.items()},
    }
    assert contents(open_at(Path(f"{tmp_path}/t*.[zt]*"))) == contents(open_at(tmp_path))


def test_two_archives_for_one_folder_are_refused(tmp_path: Path) -> None:
    place(tmp_path, {"train.zip": zipped(images("1.png")), "train.tar": tarred(images("1.png"))})
    with pytest.raises(DataError, match="two of the name train"):
        open_at(tmp_path)


def test_real_archives_of_cifar(real_data: Path) -> None:
    source = open_at(real_data / "cifar10")
    assert len(source.classes or ()) == 10
    assert source.carve == ("val",)
    found = records(source)
    assert len(found) == 60_000
    assert sum(record.split == "test" for record in found) == 10_000
    assert found[0].image.read().startswith(b"\xff\xd8")


# --- harm -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_unsafe_members_are_rejected_and_the_others_used(tmp_path: Path, kind: str) -> None:
    good = images("x/a.png", "x/b.png")
    make = bad_archives.unsafe_tar if kind == "tar" else bad_archives.unsafe_zip
    archive, bad = make(good)
    items = list(open_bytes(tmp_path / "in", f"a.{kind}", archive).items)
    assert rejected(items) == bad
    assert all(item.detail for item in items if isinstance(item, Rejected))
    assert {one.id: one.image.read() for one in items if not isinstance(one, Rejected)} == good
    assert [path.name for path in tmp_path.rglob("*.png")] == []


def test_an_encrypted_member_is_rejected(tmp_path: Path) -> None:
    source = open_bytes(tmp_path, "a.zip", bad_archives.encrypted_zip("a.png"))
    assert rejected(source.items) == {"a.png": reasons.UNREADABLE}


@pytest.mark.parametrize(("said", "length"), [(100, 1 << 20), (1 << 19, 100)])
def test_a_member_that_lies_about_its_length_is_not_believed(
    tmp_path: Path, said: int, length: int
) -> None:
    archive = bad_archives.lying_zip("a.png", said, length)
    (record,) = records(open_bytes(tmp_path, "a.zip", archive))
    with pytest.raises(ImageFault, match=f"damaged.*{said} bytes, and {min(length, said + 1)} "):
        record.image.read()


def test_two_members_of_one_name_are_both_listed(tmp_path: Path) -> None:
    one, two = images("a.png", "b.png").values()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for data in (one, two):
            info = tarfile.TarInfo("./x/a.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    found = records(open_bytes(tmp_path, "a.tar", buffer.getvalue()))
    assert [record.id for record in found] == ["a.png", "a.png"]
    assert [record.image.read() for record in found] == [one, two]


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_what_is_no_archive_is_refused(tmp_path: Path, name: str) -> None:
    for content in (b"", b"this is not an archive" * 100):
        with pytest.raises(DataError, match="again"):
            open_bytes(tmp_path, name, content)


def test_a_missing_archive_names_the_knob(tmp_path: Path) -> None:
    for name in ("no.zip", "no.tar"):
        with pytest.raises(DataError, match=r"is not there.*data\.images\.path"):
            open_at(tmp_path / name)


def test_an_archive_without_images_is_refused(tmp_path: Path) -> None:
    for name, make in KINDS.items():
        with pytest.raises(DataError, match="holds no image files"):
            list(open_bytes(tmp_path, name, make({"notes.txt": b"x"})).items)


def test_a_zip_cut_short_is_refused_with_the_reason(tmp_path: Path) -> None:
    whole = zipped(images(*NAMES))
    with pytest.raises(DataError, match="cut short"):
        open_bytes(tmp_path, "a.zip", whole[:-40])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_tar_cut_short_gives_what_is_whole_and_says_so(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    pictures = images(*(f"{number}.png" for number in range(5)))
    whole = tarred(pictures)
    last = whole.rindex(pictures["4.png"]) + len(pictures["4.png"])
    cut = data.draw(st.integers(600, last - 1))
    source = open_bytes(tmp_path_factory.mktemp("cut"), "a.tar", whole[:cut])
    items = list(source.items)
    lost = rejected(items)
    used = {item.id: item.image.read() for item in items if not isinstance(item, Rejected)}
    ends = {name: whole.index(data) + len(data) for name, data in pictures.items()}
    expected = {name: data for name, data in pictures.items() if ends[name] <= cut}
    assert used == expected
    assert set(lost.values()) <= {reasons.TRUNCATED}
    at_a_boundary = cut % 512 == 0 and cut in _ends_of_members(whole)
    assert lost or at_a_boundary


def _ends_of_members(whole: bytes) -> set[int]:
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        return {info.offset_data + -(-info.size // 512) * 512 for info in archive}


def test_a_tar_damaged_in_the_middle_gives_what_came_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = {f"{number}.png": b"x" * (number + 1) for number in range(4)}
    archive = bad_archives.tar_damaged_after(tarred(small), 2)
    with caplog.at_level(logging.WARNING):
        items = list(open_bytes(tmp_path, "a.tar", archive).items)
    assert rejected(items) == {f"{tmp_path}/a.tar": reasons.DAMAGED}
    assert [item.id for item in items[1:]] == ["0.png", "1.png"]
    assert "damaged at byte 2048" in caplog.text


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard])
def test_a_compressed_tar_cut_short_gives_what_is_whole(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    noise = {f"{n}.png": zoo.np.random.default_rng(n).bytes(200_000) for n in range(12)}
    packed = pack(tarred(noise))
    how = Opening(HOW.limit, HOW.advice, tmp_path / "spool")
    place(tmp_path, {"a.tar.gz": packed[: len(packed) * 3 // 4]})
    items = list(open_at(tmp_path / "a.tar.gz", how).items)
    used = {item.id: item.image.read() for item in items if not isinstance(item, Rejected)}
    assert used
    assert used.items() <= noise.items()
    assert rejected(items)[f"{tmp_path}/a.tar.gz"] in (reasons.TRUNCATED, reasons.DAMAGED)
    # The same name, whole at last: what was unpacked of the first is not taken for it.
    place(tmp_path, {"a.tar.gz": packed})
    assert contents(open_at(tmp_path / "a.tar.gz", how)) == noise


def test_bytes_that_do_not_fit_their_checksum_are_damaged(tmp_path: Path) -> None:
    pictures = images("a.png", "b.png")
    stored = zipped(pictures, zipfile.ZIP_STORED)
    broken = bad_archives.flipped(stored, pictures["a.png"])
    a, b = records(open_bytes(tmp_path, "a.zip", broken))
    assert b.image.read() == pictures["b.png"]
    with pytest.raises(ImageFault, match=r"damaged.*CRC"):
        a.image.read()
    (c,) = records(
        open_bytes(tmp_path, "b.zip", bad_archives.bad_crc_zip("a.png", pictures["a.png"]))
    )
    with pytest.raises(ImageFault, match=r"damaged.*CRC"):
        c.image.read()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=300), st.integers(0, 10_000), st.sampled_from(["a.zip", "a.tar"]))
def test_garbage_in_an_archive_is_never_taken_for_an_image(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes, at: int, name: str
) -> None:
    """Overwritten anywhere: each image comes as it was, or with a fault, or the archive is
    refused. (A tar has no checksum of its members' bytes: there only the place is held to.)"""
    pictures = images("a.png", "b.png", "c.png")
    whole = KINDS[name](pictures)
    at %= len(whole)
    folder = tmp_path_factory.mktemp("garbage")
    broken = (whole[:at] + garbage + whole[at + len(garbage) :])[: len(whole)]
    try:
        found = records(open_bytes(folder, name, broken))
    except DataError:
        return
    for record in found:
        try:
            content = record.image.read()
        except ImageFault as fault:
            assert fault.reason in reasons.ALL
        else:
            assert name == "a.tar" or content in pictures.values()


# --- names ------------------------------------------------------------------------------------


def test_names_in_utf_8_are_read_though_the_zip_does_not_say_so(tmp_path: Path) -> None:
    archive = bad_archives.zip_of_raw_utf_8("größe.png", b"x")
    assert list(contents(open_bytes(tmp_path, "a.zip", archive))) == ["größe.png"]


def test_backslashes_of_windows_are_folders(tmp_path: Path) -> None:
    archive = bad_archives.zip_made_on_windows("cat/tabby/1.png", b"x")
    tree = open_tree(str(place(tmp_path, {"a.zip": archive}) / "a.zip"), HOW)
    assert list(contents(open_folder(tree))) == ["1.png"]


def test_names_that_are_no_text_are_shown_as_text(tmp_path: Path) -> None:
    archive = tarred({"xxx.png": b"x"}, format=tarfile.GNU_FORMAT)
    header = bytearray(archive[:512].replace(b"xxx.png", b"\xe9xx.png"))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (record,) = records(open_bytes(tmp_path, "a.tar", bytes(header) + archive[512:]))
    assert record.id == r"\xe9xx.png"
    assert record.image.read() == b"x"


# --- the spool --------------------------------------------------------------------------------


def test_a_compressed_tar_is_unpacked_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how = Opening(HOW.limit, HOW.advice, tmp_path / "spool")
    pictures = images("a.png", "b.png")
    place(tmp_path, {"a.tar.gz": gzip.compress(tarred(pictures))})
    with caplog.at_level(logging.INFO):
        first = records(open_at(tmp_path / "a.tar.gz", how))
        again = records(open_at(tmp_path / "a.tar.gz", how))
    assert first == again
    assert caplog.text.count("unpacking it once") == 1
    assert "unpacked before" in caplog.text
    assert len(list((tmp_path / "spool").iterdir())) == 1


def test_a_full_disk_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda folder: full)
    how = Opening(HOW.limit, HOW.advice, tmp_path / "spool")
    place(tmp_path, {"a.tar.gz": gzip.compress(tarred(images("a.png")))})
    with pytest.raises(DataError, match="is full"):
        open_at(tmp_path / "a.tar.gz", how)
    assert list((tmp_path / "spool").iterdir()) == []
