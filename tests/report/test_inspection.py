"""What `mae data inspect` gathers, tells and draws, for all kinds of data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae.data.sharding.run import shard_dataset
from mae.data.validation.profile import Profile
from mae.report.inspection import PAIRS, Inspection, Pair, Tile, gather, in_words, inspect_dataset
from mae.report.inspection_picture import draw_inspection
from tests.data import zoo
from tests.data.made_manifest import Made, make_dataset


def tile(number: int, channels: int, dtype: Any = np.uint8) -> Tile:
    pixels = zoo.pattern(40 + number, 50, channels, seed=number).astype(dtype)
    return Tile(pixels * (12 if dtype == np.uint16 else 1), f"folder/{number:04d}.png")


def drawn(found: Inspection, folder: Path) -> np.ndarray:
    path = folder / "picture.png"
    draw_inspection(found, path)
    first = path.read_bytes()
    draw_inspection(found, path)
    assert path.read_bytes() == first
    return np.asarray(Image.open(path).convert("RGB"))


def made_up(folder: Path, made: Made, channels: int = 3, dtype: Any = np.uint8) -> Inspection:
    info = make_dataset(folder, made)
    profile = Profile.of(info)
    tiles = [tile(number, channels, dtype) for number in range(3)]
    classes = [(name, profile.labels.get(name, {})) for name in info.classes[:20]]
    table = [(n, {s: counts.get(s, 0) for s in ("train", "val", "test")}) for n, counts in classes]
    unlisted = max(0, made.labels - 20)
    rows = [(name, tiles) for name in info.classes[:3]] or [("", tiles)]
    return Inspection(info, profile, "train", rows, table, unlisted, [])


@pytest.mark.parametrize(
    ("channels", "dtype"),
    [(1, np.uint8), (3, np.uint8), (4, np.uint8), (13, np.uint16), (1, np.uint16)],
)
def test_any_pixels_are_drawn_with_contrast(tmp_path: Path, channels: int, dtype: Any) -> None:
    picture = drawn(made_up(tmp_path, Made(rows=300, labels=3), channels, dtype), tmp_path)
    images = picture[110:460]
    assert picture.shape[1] == 1300
    assert images.std() > 25
    coloured = np.ptp(images.astype(int), axis=2).max() > 60
    assert coloured == (channels >= 3)


def test_unlabelled_without_faults_takes_less_room(tmp_path: Path) -> None:
    plain = drawn(made_up(tmp_path, Made(rows=300, labels=0, quarantined=0)), tmp_path)
    classes = drawn(made_up(tmp_path, Made(rows=300, labels=10)), tmp_path)
    assert plain.shape[0] < classes.shape[0]


def test_many_classes_are_listed_by_their_ends(tmp_path: Path) -> None:
    found = made_up(tmp_path, Made(rows=20_000, labels=10_000))
    words = in_words(found)
    assert ("...", "9,980 more classes") in words
    assert len(words) < 60
    assert drawn(found, tmp_path).shape[0] < 2500


def test_pairs_are_drawn_side_by_side(tmp_path: Path) -> None:
    found = made_up(tmp_path, Made(rows=300))
    both = Pair(tile(1, 3), tile(2, 3), "folder/0002.png", "same look, train and test")
    one = Pair(tile(3, 3), None, "folder/gone.png", "same bytes, one left out")
    with_pairs = replace(found, pairs=[both, one])
    assert ("Pair, same bytes, one left out", "folder/0003.png and folder/gone.png") in in_words(
        with_pairs
    )
    picture = drawn(with_pairs, tmp_path)
    below = picture[drawn(found, tmp_path).shape[0] :]
    assert 150 < len(below) < 250
    widths = 1300 // (2 * PAIRS)
    contrast = [below[:, i * widths : (i + 1) * widths].std() for i in range(2 * PAIRS)]
    assert min(contrast[:3]) > 40 > 30 > max(contrast[3:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in train and test only, one image twice, one that is none."""
    root = tmp_path_factory.mktemp("inspected")
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            target = root / "source" / split / name
            height = 30 if split == "train" else 40
            zoo.write_images(target, 30 + 10 * number, height=height, channels=3)
    first = root / "source/train/cat/0000.png"
    (root / "source/train/cat/copy.png").write_bytes(first.read_bytes())
    (root / "source/train/dog/text.png").write_text("no image")
    return root


@pytest.mark.parametrize("rule", ["keep", "drop"])
def test_a_sharded_folder(folder: Path, rule: str) -> None:
    params = zoo.data_params(
        images=folder / "source",
        channels=3,
        splits={"val": 0.0, "test": 0.2, "stratify": False},
        duplicates={"exact": rule, "near": "keep", "near_bits": 0},
    )
    info = shard_dataset("images", params, 0, folder / rule / "images")
    found = gather(info, seed=0)
    assert [name for name, _ in found.rows] == ["dog", "cat"]
    assert all(len(tiles) == 8 for _, tiles in found.rows)
    assert all(f"/{name}/" in one.key for name, tiles in found.rows for one in tiles)
    assert dict(found.classes)["dog"] == {"train": 40, "val": 0, "test": 40}
    (pair,) = [one for one in found.pairs if one.copy_key == "train/cat/copy.png"]
    assert pair.first.key == "train/cat/0000.png"
    assert (pair.copy is None) == (rule == "drop")
    if pair.copy is not None:
        assert np.array_equal(pair.copy.pixels, pair.first.pixels)
    again, other = gather(info, seed=0), gather(info, seed=1)
    keys = [[one.key for _, tiles in each.rows for one in tiles] for each in (found, again, other)]
    assert keys[0] == keys[1] != keys[2]
    words = dict(inspect_dataset(info, folder / f"{rule}.png", 0))
    assert words["  cat"] == f"train {30 + (rule == 'keep')}, val 0, test 30 images"
    assert words["Left out: not_an_image"] == "1"
    assert Image.open(folder / f"{rule}.png").height > 500


def test_scenes_are_drawn_with_what_is_marked(tmp_path: Path) -> None:
    params = zoo.data_params(scenes={"source": "digits"})
    info = shard_dataset("scenes", params, 0, tmp_path / "scenes")
    found = gather(info, seed=0)
    ((_, tiles),) = found.rows
    assert len(tiles) == 8
    assert all(one.annotations for one in tiles)
    picture = drawn(found, tmp_path).astype(int)
    assert np.ptp(picture[90:500], axis=2).max() > 150
    assert any("objects" in value for _, value in in_words(found))
