"""params.yaml's words lead to the sources that they name."""

import gzip
import json
from pathlib import Path

import pytest

from mae.data.sources import open_source
from mae.errors import DataError
from mae.params import DataParams
from tests.data import zoo
from tests.data.sources.listing import images, place, records, tarred, zipped


def params(dataset: str, source: str, path: Path | str) -> DataParams:
    return zoo.data_params(**{dataset: {"source": source, "path": str(path)}})


def test_the_digits_are_embedded_and_none_is_none() -> None:
    digits = open_source("images", zoo.data_params(), 0)
    assert digits is not None
    record = next(digits.items)
    assert record.image.read().startswith(b"\x89PNG")
    assert (
        record.image.stamp()
        == next(open_source("images", zoo.data_params(), 0).items).image.stamp()
    )
    assert open_source("scenes", zoo.data_params(), 0) is None


def test_each_source_by_its_word(tmp_path: Path) -> None:
    pictures = images("x/a.png", "y/b.png")
    place(tmp_path / "folder", pictures)
    place(tmp_path, {"a.zip": zipped(pictures), "a.tar": tarred(pictures)})
    place(tmp_path / "folder", {"list.csv": b"path\nx/a.png\ny/b.png\n"})
    for source, path in (
        ("folder", "folder"),
        ("folder", "a.zip"),
        ("webdataset", "a.tar"),
        ("table", "folder/list.csv"),
    ):
        found = open_source("images", params("images", source, tmp_path / path), 0)
        assert found is not None
        assert [record.image.read() for record in records(found)] == list(pictures.values())


def test_each_source_of_scenes_by_its_word(tmp_path: Path) -> None:
    picture = images("a.png")["a.png"]
    about = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []}
    place(tmp_path / "coco", {"images/a.png": picture})
    place(tmp_path / "coco", {"annotations/train.json": json.dumps(about).encode()})
    place(tmp_path / "voc", {"JPEGImages/a.png": picture, "Annotations/a.xml": b"<annotation/>"})
    place(tmp_path / "label_images", {"images/a.png": picture, "labels/a.png": picture})
    for source in ("coco", "voc", "label_images"):
        found = open_source("scenes", params("scenes", source, tmp_path / source), 0)
        assert found is not None
        assert [record.image.read() for record in records(found)] == [picture]


def test_messages_name_the_dataset_that_is_wrong(tmp_path: Path) -> None:
    for dataset, source in (("images", "folder"), ("scenes", "coco"), ("images", "table")):
        with pytest.raises(DataError, match=rf"data\.{dataset}\.path"):
            open_source(dataset, params(dataset, source, tmp_path / "no"), 0)


def test_the_spool_given_is_the_one_used(tmp_path: Path) -> None:
    place(tmp_path, {"a.tar.gz": gzip.compress(tarred(images("a.png")))})
    open_source("images", params("images", "folder", tmp_path / "a.tar.gz"), 0, tmp_path / "spool")
    assert len(list((tmp_path / "spool").glob("*.tar"))) == 1
