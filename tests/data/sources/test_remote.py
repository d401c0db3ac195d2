"""Folders behind URLs: listed by their store, refused with a word."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from mae.data import reasons
from mae.data.reasons import ImageFault
from mae.data.sources.files import RemoteFile, file_system
from mae.data.sources.folder import open_folder
from mae.data.sources.opening import open_tree
from mae.data.sources.trees import FilesBelow
from mae.errors import DataError
from tests.data.sources.listing import HOW, LIMIT, images, place, records


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    files.store.clear()  # one store for the whole process: other tests leave things there
    yield files
    files.store.clear()


def test_lengths_and_stamps_come_with_the_listing(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/bucket/a.png", b"one")
    memory.pipe("/bucket/huge.png", bytes(LIMIT + 1))
    a, huge = records(open_folder(open_tree("memory://bucket", HOW)))

    def asked(*given: object) -> None:
        raise AssertionError("the store was asked again")

    monkeypatch.setattr(type(memory), "info", asked)
    assert a.image.stamp().startswith("3-")
    with pytest.raises(ImageFault, match="too_large"):
        huge.image.read()


def test_what_has_come_since_is_seen(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/bucket/a.png", b"one")
    assert len(records(open_folder(open_tree("memory://bucket", HOW)))) == 1
    memory.pipe("/bucket/b.png", b"two")
    assert len(records(open_folder(open_tree("memory://bucket/", HOW)))) == 2


def test_find_knows_what_is_there(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/bucket/x/a.png", b"one")
    tree = open_tree("memory://bucket", HOW)
    assert tree.find("x/a.png").read() == b"one"
    for name, reason in (("x/b.png", reasons.MISSING), ("../c.png", reasons.UNSAFE)):
        with pytest.raises(ImageFault) as caught:
            tree.find(name).read()
        assert caught.value.reason == reason
    assert tree.folders() == ["x"]
    assert tree.entries("nowhere") == []


def test_nothing_there_is_an_error(memory: fsspec.AbstractFileSystem) -> None:
    for url in ("memory://nowhere", "memory://nowhere/a.zip", "memory://nowhere/*.zip"):
        with pytest.raises(DataError, match=r"data\.images\.path"):
            open_tree(url, HOW)


def test_an_object_that_went_away_is_missing(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/bucket/a.png", b"one")
    (record,) = records(open_folder(open_tree("memory://bucket", HOW)))
    memory.rm("/bucket/a.png")
    with pytest.raises(ImageFault, match="missing"):
        record.image.read()
    with pytest.raises(ImageFault, match="missing"):
        RemoteFile("memory://bucket/a.png", LIMIT).stamp()


def test_a_protocol_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"nonsense://x.*cannot be opened"):
        file_system("nonsense://x")

    def missing(*given: object, **options: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(DataError, match="s3fs"):
        open_tree("s3://bucket/images", HOW)


def test_links_behind_file_urls_end(tmp_path: Path) -> None:
    place(tmp_path, images("a/1.png"))
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    names = [name for name, _ in FilesBelow(open_tree(f"file://{tmp_path}", HOW))]
    assert "a/1.png" in names
    assert len(names) < 10
