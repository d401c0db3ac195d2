"""What is sharded is complete, the same every time, and either whole or not there."""

import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mae.data import reasons
from mae.data.dataset import read_dataset_info
from mae.data.reader import ShardReader
from mae.data.records import Inline, Record, Source
from mae.data.sharding import run as sharding
from mae.data.sharding.run import shard_dataset
from mae.data.sharding.statistics import PixelSums
from mae.errors import DataError
from mae.hashing import text_id
from tests.data import zoo
from tests.data.trees import tree
from tests.data.zoo import MakeParams


def test_every_animal_of_the_zoo_is_accepted_or_quarantined_for_its_reason(
    tmp_path: Path, make_params: MakeParams
) -> None:
    expected = zoo.build(tmp_path / "zoo")
    params = make_params(images=tmp_path / "zoo", channels=3, splits={"val": 0.0, "test": 0.0})
    info = shard_dataset("images", params, 0, tmp_path / "shards")
    rows = pq.read_table(tmp_path / "shards" / "manifest.parquet").to_pylist()
    assert {row["key"]: row["reason"] for row in rows} == expected
    assert info.seen == len(expected)
    assert info.accepted + info.quarantined + info.set_aside == info.seen
    assert all(row["detail"] for row in rows if not row["accepted"])
    assert all(row["sha256"] and row["height"] for row in rows if row["accepted"])
    reader = ShardReader(tmp_path / "shards", "train")
    assert len(reader) == info.accepted
    for index, key in enumerate(reader.keys):
        assert reader.read(index) == (tmp_path / "zoo" / key).read_bytes()
        assert reader.pixels(index).shape == (reader.heights[index], reader.widths[index], 3)


def test_bytes_do_not_depend_on_the_run_or_on_how_folders_were_made(
    tmp_path: Path, make_params: MakeParams
) -> None:
    zoo.write_images(tmp_path / "a" / "x", 40)
    zoo.write_images(tmp_path / "a" / "y", 40)
    for path in sorted((tmp_path / "a").rglob("*.png"), reverse=True):
        copy = tmp_path / "b" / path.relative_to(tmp_path / "a")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    trees = []
    for number, source in enumerate("aab"):
        out = tmp_path / str(number)
        shard_dataset("images", make_params(images=tmp_path / source), 0, out)
        trees.append(tree(out))
    assert trees[0] == trees[1] == trees[2]
    assert "train/shard-00000.mdb" in trees[0]


def test_the_seed_changes_no_split(tmp_path: Path, make_params: MakeParams) -> None:
    zoo.write_images(tmp_path / "a", 40)
    params = make_params(images=tmp_path / "a")
    infos = [shard_dataset("images", params, seed, tmp_path / "out") for seed in (0, 1)]
    assert infos[0] == infos[1]


def test_fingerprint_follows_content(tmp_path: Path, make_params: MakeParams) -> None:
    zoo.write_images(tmp_path / "a" / "x", 20)
    zoo.write_images(tmp_path / "a" / "y", 20)

    def fingerprint(**changes: object) -> str:
        params = make_params(images=tmp_path / "a", **changes)
        return shard_dataset("images", params, 0, tmp_path / "out").fingerprint

    first = fingerprint()
    assert fingerprint(shard_mb=1) == first
    assert fingerprint(channels=3) != first
    assert fingerprint(splits={"val": 0.3, "test": 0.2}) != first
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "z")
    renamed = fingerprint()
    assert renamed != first
    (tmp_path / "a" / "z" / "0000.png").write_bytes(zoo.png(zoo.pattern(20, 20)))
    assert fingerprint() not in (first, renamed)


def test_statistics_are_exact_and_of_train_alone(small_shards: Path) -> None:
    info = read_dataset_info(small_shards)
    reader = ShardReader(small_shards, "train")
    pixels = np.stack([reader.pixels(i) for i in range(len(reader))]).astype(np.float64) / 255
    assert info.statistics.mean[0] == pytest.approx(pixels.mean(), rel=1e-12)
    assert info.statistics.std[0] == pytest.approx(pixels.std(), rel=1e-12)


def test_pixel_sums_do_not_overflow_at_sixteen_bits() -> None:
    pixels = np.full((2000, 1100, 2), 65535, np.uint16)
    pixels[..., 1] = 0
    sums = PixelSums.of(pixels)
    assert sums.squares == (65535**2 * 2_200_000, 0)
    assert (sums + sums).statistics(16).mean == (1.0, 0.0)
    assert (sums + sums).statistics(16).std == (0.0, 0.0)


def test_shards_stay_below_their_limit_and_hold_everything(
    tmp_path: Path, make_params: MakeParams
) -> None:
    (tmp_path / "a").mkdir()
    random = np.random.default_rng(0)
    for number in range(60):
        side = 40 if number % 2 else 230
        noise = random.integers(0, 256, (side, side, 1), dtype=np.uint8)
        (tmp_path / "a" / f"{number}.png").write_bytes(zoo.png(noise))
    params = make_params(images=tmp_path / "a", shard_mb=1, splits={"val": 0.0, "test": 0.0})
    shard_dataset("images", params, 0, tmp_path / "out")
    shards = sorted((tmp_path / "out" / "train").iterdir())
    assert len(shards) >= 2
    assert {shard.suffix for shard in shards} == {".mdb"}
    assert max(shard.stat().st_size for shard in shards) <= 1 << 20
    reader = ShardReader(tmp_path / "out", "train")
    for index, key in enumerate(reader.keys):
        assert reader.read(index) == (tmp_path / "a" / key).read_bytes()


def test_an_image_larger_than_a_shard_gets_its_own(tmp_path: Path, make_params: MakeParams) -> None:
    (tmp_path / "a").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1400, 1400, 1), dtype=np.uint8)
    (tmp_path / "a" / "big.png").write_bytes(zoo.png(noise))
    params = make_params(images=tmp_path / "a", shard_mb=1, splits={"val": 0.0, "test": 0.0})
    shard_dataset("images", params, 0, tmp_path / "out")
    assert np.array_equal(ShardReader(tmp_path / "out", "train").pixels(0), noise)


def test_a_name_that_comes_twice_is_kept_once(
    tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [Inline(zoo.png(zoo.pattern(10, 10, 1, seed=n))) for n in (1, 2)]
    twice = [Record("a", image, split="train") for image in images]
    read = []
    for order in (twice, twice[::-1]):
        source = Source(iter(order), "a test")
        monkeypatch.setattr(sharding, "open_source", lambda *_, source=source: source)
        info = shard_dataset("images", make_params(), 0, tmp_path / "out")
        assert (info.seen, info.accepted, info.quarantined) == (2, 1, 1)
        rows = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
        assert {row["reason"] for row in rows} == {None, reasons.DUPLICATE_ID}
        read.append(ShardReader(tmp_path / "out", "train").read(0))
        shutil.rmtree(tmp_path / "out")
    assert read[0] == read[1]


@pytest.mark.parametrize("content", ["all bad", "all held out"])
def test_nothing_to_train_on_is_refused(
    tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    image = b"words" if content == "all bad" else zoo.png(zoo.pattern(10, 10, 1))
    records = [Record("a", Inline(image), split="test")]
    monkeypatch.setattr(sharding, "open_source", lambda *_: Source(iter(records), "a test"))
    message = "1 not_an_image" if content == "all bad" else "no image in train, only in test"
    with pytest.raises(DataError, match=message):
        shard_dataset("images", make_params(), 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_skipped_scenes_leave_an_empty_dataset(tmp_path: Path, make_params: MakeParams) -> None:
    info = shard_dataset("scenes", make_params(), 0, tmp_path / "scenes")
    assert info.skipped is not None
    assert "data.scenes.source is none" in info.skipped
    assert pq.read_table(tmp_path / "scenes" / "manifest.parquet").num_rows == 0
    assert pq.read_table(tmp_path / "scenes" / "index.parquet").num_rows == 0
    with pytest.raises(DataError, match="source is none"):
        ShardReader(tmp_path / "scenes", "train")


def test_index_says_where_everything_is(small_shards: Path) -> None:
    info = read_dataset_info(small_shards)
    for split, count in info.splits.items():
        rows = [
            row
            for row in pq.read_table(small_shards / "index.parquet").to_pylist()
            if row["split"] == split
        ]
        assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
        assert len(rows) == count
        assert [row["id"] for row in rows] == [text_id(row["key"]) for row in rows]
        assert [info.classes[row["label"]] for row in rows] == [
            row["key"].split("/")[0] for row in rows
        ]


def test_dataset_json_is_plain_and_finite(small_shards: Path) -> None:
    content = json.loads((small_shards / "dataset.json").read_text())
    assert content["format"] == 2
    assert content["seen"] == content["accepted"] + content["quarantined"] == 150
    assert all(math.isfinite(value) for value in content["statistics"]["mean"])


def test_a_dataset_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dvc repro shard"):
        read_dataset_info(tmp_path)


def test_real_cifar_folders(tmp_path: Path, make_params: MakeParams, real_data: Path) -> None:
    for name in ("train", "test"):
        with zipfile.ZipFile(real_data / "cifar10" / f"{name}.zip") as archive:
            names = [entry for entry in archive.namelist() if entry.endswith(".jpg")]
            archive.extractall(tmp_path / "cifar", names[::150])
    params = make_params(images=tmp_path / "cifar", channels=3)
    info = shard_dataset("images", params, 0, tmp_path / "out")
    assert info.quarantined == 0
    assert len(info.classes) == 10
    assert info.splits["test"] == 67
    assert info.splits["train"] + info.splits["val"] == 334
    # The published figures for CIFAR-10 are .491 .482 .447 and .247 .243 .262.
    assert info.statistics.mean == pytest.approx((0.491, 0.482, 0.447), abs=0.03)
    assert info.statistics.std == pytest.approx((0.247, 0.243, 0.262), abs=0.03)


def test_real_nuclei_scenes(tmp_path: Path, make_params: MakeParams, real_data: Path) -> None:
    params = make_params(scenes=real_data / "nuclei", channels=3)
    info = shard_dataset("scenes", params, 0, tmp_path / "out")
    assert info.quarantined == 0
    assert info.categories == ("nucleus",)
    assert info.splits["test"] == 102
    assert info.splits["train"] + info.splits["val"] == 436
    assert sum(counts["nucleus"] for counts in info.instances.values()) == 13371 + 3296
