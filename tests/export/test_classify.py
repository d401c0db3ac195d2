"""Images become tables of their most probable classes."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mae.errors import ParamsError
from mae.export.classify import classify_images, most_probable
from mae.export.images import InputImage, input_images
from mae.export.session import ClassifierSession
from tests.export.small_onnx import CLASSES, SmallOnnx, small_onnx


@pytest.fixture(scope="module")
def small() -> SmallOnnx:
    return small_onnx()


@pytest.fixture(scope="module")
def session(small: SmallOnnx) -> ClassifierSession:
    return ClassifierSession(small.classifier, "cpu")


def run(session: ClassifierSession, images: Path, out: Path, top: int = 5, batch: int = 7):
    return classify_images(session, images, out, top=top, batch=batch, workers=2)


def test_the_most_probable_classes_in_order(
    small: SmallOnnx, session: ClassifierSession, tmp_path: Path
) -> None:
    done = run(session, small.source, tmp_path / "p.parquet", top=2)
    assert (done.images, done.rejected) == (40, 1)
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert list(table[0]) == ["key", "class_1", "probability_1", "class_2", "probability_2"]
    images = [i for i in input_images(small.source, session.view(), 1) if isinstance(i, InputImage)]
    assert [row["key"] for row in table] == [image.key for image in images]
    seen = set()
    for row, image in zip(table, images, strict=True):
        probabilities = session(image.pixels[None])[0]
        order = sorted(range(len(CLASSES)), key=lambda k: -probabilities[k])
        for rank in (1, 2):
            which = order[rank - 1]
            assert row[f"class_{rank}"] == CLASSES[which]
            assert row[f"probability_{rank}"] == pytest.approx(probabilities[which], abs=1e-5)
        seen.add(row["class_1"])
    assert len(seen) > 1  # else the order of classes would not have been tried


def test_csv_holds_the_same(small: SmallOnnx, session: ClassifierSession, tmp_path: Path) -> None:
    """More classes asked for than there are: all of them."""
    run(session, small.source, tmp_path / "p.parquet", top=99)
    run(session, small.source, tmp_path / "p.csv", top=99)
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    with (tmp_path / "p.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(table) == 40
    assert len(rows[0]) == 1 + 2 * len(CLASSES)
    for row, wanted in zip(rows, table, strict=True):
        assert row["class_3"] == wanted["class_3"]
        assert float(row["probability_1"]) == pytest.approx(wanted["probability_1"], rel=1e-5)
        assert sum(float(row[f"probability_{n}"]) for n in (1, 2, 3)) == pytest.approx(1, abs=1e-4)


def test_of_equal_classes_the_first_comes_first() -> None:
    probabilities = np.array([[0.2, 0.4, 0.4], [0.5, 0.5, 0.0]], np.float32)
    assert most_probable(probabilities, 2).tolist() == [[1, 2], [0, 1]]


def test_other_suffixes(small: SmallOnnx, session: ClassifierSession, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"\.csv or \.parquet"):
        run(session, small.source, tmp_path / "p.npy")
