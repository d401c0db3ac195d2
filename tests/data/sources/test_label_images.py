"""Label images: each value a category, as a mask that is drawn back bit by bit."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from mae.data import reasons
from mae.data.annotations import draw_mask, keep_sound
from mae.data.reasons import ImageFault
from mae.data.records import Inline, Source
from mae.data.sources.label_images import LabelAnnotations, LabelReader, open_label_images
from mae.data.sources.opening import open_tree
from mae.errors import DataError
from tests.data import zoo
from tests.data.sources.listing import HOW, images, place, records, rejected, zipped

PIXELS = 10_000


def label(values: list[int], kind: str = "PNG", mode: str = "L") -> bytes:
    """Return a label image of 10 x 12 whose rows are filled by the values in turn."""
    rows = np.resize(np.array(values), 10)[:, None].repeat(12, axis=1)
    image = Image.fromarray(rows.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image.putpalette([channel for n in range(256) for channel in (n, 255 - n, n // 2)])
    return zoo.encoded(image, kind)


def open_at(path: Path) -> Source:
    return open_label_images(open_tree(str(path), HOW), PIXELS)


def names_and_areas(source: Source) -> list[tuple[str, float]]:
    marks = records(source)[0].read_annotations()
    assert marks is not None
    return [(one["category"], one["area"]) for one in marks]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", label([0, 3, 7, 255, 3])),
        ("a.tif", label([0, 3, 7, 255, 3], "TIFF")),
        ("a.png", label([0, 3, 7, 255, 3], mode="P")),
        ("a.png", label([0, 3, 7, 65535, 3], mode="I;16")),
    ],
)
def test_values_are_categories_but_for_background_and_void(
    tmp_path: Path, name: str, content: bytes
) -> None:
    place(tmp_path, {"images/a.jpg": images("a")["a"], f"labels/{name}": content})
    assert names_and_areas(open_at(tmp_path)) == [("3", 48), ("7", 24)]


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
        elements=st.sampled_from([0, 1, 2, 200, 255]),
    )
)
def test_masks_drawn_back_are_the_label_image(values: NDArray) -> None:
    location = Inline(zoo.encoded(Image.fromarray(values), "PNG"))
    marks = LabelAnnotations(location, LabelReader((), PIXELS))()
    drawn = np.zeros_like(values)
    for one in keep_sound(marks, *values.shape, None):
        mask = draw_mask(one, *values.shape).astype(bool)
        drawn[mask] = int(one["category"])
        rows, columns = np.nonzero(mask)
        x, y, width, height = one["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert one["area"] == mask.sum()
    assert (drawn == np.where(values == 255, 0, values)).all()


@pytest.mark.parametrize(
    ("text", "expected", "categories"),
    [
        ("sky\nroad\ncar\n", [("road", 60), ("car", 60)], ("sky", "road", "car")),
        ("background\nsky\nroad\ncar", [("road", 60), ("car", 60)], ("sky", "road", "car")),
        ("3: car\n2 road\n0 nothing", [("road", 60), ("car", 60)], ("road", "car")),
        ("2,main road", [("main road", 60), ("3", 60)], ("main road",)),
    ],
)
def test_classes_txt_names_the_values(
    tmp_path: Path, text: str, expected: list[tuple[str, float]], categories: tuple[str, ...]
) -> None:
    content = {"images/a.png": images("a")["a"], "masks/a.png": label([2, 3])}
    place(tmp_path, {**content, "classes.txt": text.encode()})
    source = open_at(tmp_path)
    assert source.categories == categories
    assert names_and_areas(source) == expected


def test_a_void_value_that_has_a_name_is_a_category(tmp_path: Path) -> None:
    content = {"images/a.png": images("a")["a"], "labels/a.png": label([255])}
    place(tmp_path, {**content, "classes.txt": b"255 dust"})
    assert names_and_areas(open_at(tmp_path)) == [("dust", 120)]


@pytest.mark.parametrize(
    "shape",
    ["images/{split}/{name}.png labels/{split}/{name}.png",
     "{split}/images/{name}.png {split}/annotations/{name}.png"],
)  # fmt: skip
def test_split_folders_inside_or_above(tmp_path: Path, shape: str) -> None:
    image, mark = shape.split()
    content = {}
    for split in ("training", "validation"):
        content[image.format(split=split, name="x/1")] = images("a")["a"]
        content[mark.format(split=split, name="x/1")] = label([1])
    for path in (
        place(tmp_path / "f", content),
        place(tmp_path, {"a.zip": zipped(content)}) / "a.zip",
    ):
        source = open_at(path)
        assert source.carve == ("val",)
        found = records(source)
        assert [one.split for one in found] == [None, "test"]
        assert found[0].id == image.format(split="training", name="x/1")
        loaded = pickle.loads(pickle.dumps(found))
        assert loaded[0].read_annotations() == found[0].read_annotations() != []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"words", "cannot be read"),
        (label([1])[:44], "cannot be read"),
        (zoo.encoded(Image.fromarray(zoo.pattern(10, 12, 1)[..., 0]), "JPEG"), "cannot be read"),
        (zoo.png(zoo.pattern(10, 12, 3)), "mode RGB"),
        (zoo.bomb(2000), "above data.max_pixels"),
    ],
)
def test_label_images_that_cannot_be_used_are_faults(
    tmp_path: Path, content: bytes, message: str
) -> None:
    place(tmp_path, {"images/a.png": images("a")["a"], "labels/a.png": content})
    with pytest.raises(ImageFault, match=message) as caught:
        records(open_at(tmp_path))[0].read_annotations()
    assert caught.value.reason == reasons.BAD_ANNOTATION


def test_an_image_without_its_label_image_is_rejected(tmp_path: Path) -> None:
    place(tmp_path, {"images/a.png": b"x", "images/b.png": b"x", "labels/b.png": label([1])})
    assert rejected(open_at(tmp_path).items) == {"images/a.png": reasons.BAD_ANNOTATION}


def test_what_cannot_be_understood_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images/ folder.*data\.scenes\.path"):
        open_at(tmp_path)
    place(tmp_path, {"images/x.txt": b"x", "labels/x.txt": b"x"})
    with pytest.raises(DataError, match="holds no image files"):
        list(open_at(tmp_path).items)
    place(tmp_path, {"classes.txt": b"cat\ncat\n"})
    with pytest.raises(DataError, match="twice"):
        open_at(tmp_path)
    place(tmp_path / "no", {"val/images/1.png": b"x", "val/labels/1.png": b"x"})
    with pytest.raises(DataError, match="no train folder"):
        open_at(tmp_path / "no")
