"""A dataset that grows, shrinks and changes: old shards stay as they are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mae.data import reasons
from mae.data.dataset import DatasetInfo
from mae.data.manifest import read_manifest
from mae.data.reader import ShardReader
from mae.data.sharding.removals import Removals, read_removals
from mae.data.sharding.run import shard_dataset
from mae.errors import DataError
from tests.data import zoo
from tests.data.trees import tree

Shard = Callable[..., DatasetInfo]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder of 90 images in three classes."""
    for name in ("a", "m", "z"):
        zoo.write_images(tmp_path / "source" / name, 30)
    return tmp_path / "source"


@pytest.fixture
def shard(source: Path, tmp_path: Path) -> Shard:
    def run(out: str = "out", removals: Removals | None = None, **changes: object) -> DatasetInfo:
        params = zoo.data_params(images=source, **changes)
        return shard_dataset("images", params, 0, tmp_path / out, removals or Removals())

    return run


def shards(folder: Path) -> dict[str, str]:
    return {name: sha256 for name, sha256 in tree(folder).items() if name.endswith(".mdb")}


def reasons_of(folder: Path) -> dict[str, str | None]:
    rows = read_manifest(folder).select(["key", "reason"]).to_pylist()
    return {row["key"]: row["reason"] for row in rows}


def splits_of(folder: Path) -> dict[str, str]:
    manifest = read_manifest(folder)
    rows = manifest.filter(manifest["accepted"]).select(["key", "split"]).to_pylist()
    return {row["key"]: row["split"] for row in rows}


def test_the_same_again_changes_nothing(shard: Shard, tmp_path: Path) -> None:
    first = shard()
    before = tree(tmp_path / "out")
    assert shard() == first
    assert tree(tmp_path / "out") == before


def test_new_images_come_into_new_shards(shard: Shard, source: Path, tmp_path: Path) -> None:
    shard()
    before, was = shards(tmp_path / "out"), splits_of(tmp_path / "out")
    zoo.write_images(source / "b", 20)
    grown = shard()
    after, now = shards(tmp_path / "out"), splits_of(tmp_path / "out")
    assert before.items() < after.items()
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == set(grown.splits)
    assert was.items() < now.items()
    assert grown.accepted == 110


def test_growing_learns_what_one_go_would(shard: Shard, source: Path, tmp_path: Path) -> None:
    """Fingerprint, statistics and order of the images do not tell how the shards came to be."""
    shard()
    zoo.write_images(source / "b", 20)
    grown, whole = shard(), shard("whole")
    assert grown.fingerprint == whole.fingerprint
    assert grown.statistics == whole.statistics
    assert shards(tmp_path / "out") != shards(tmp_path / "whole")
    for split in grown.splits:
        one, other = (ShardReader(tmp_path / name, split) for name in ("out", "whole"))
        assert one.keys == other.keys
        assert one.ids.tolist() == other.ids.tolist()
        assert [one.read(i) for i in range(len(one))] == [other.read(i) for i in range(len(one))]


def test_an_image_that_leaves_its_source_leaves_a_tombstone(
    shard: Shard, source: Path, tmp_path: Path
) -> None:
    shard(shard_mb=1)
    before = shards(tmp_path / "out")
    victim = next(key for key, split in splits_of(tmp_path / "out").items() if split == "val")
    (source / victim).unlink()
    for _ in range(2):  # a tombstone stays
        info = shard(shard_mb=1)
        assert (info.accepted, info.set_aside, info.quarantined) == (89, 1, 0)
        assert reasons_of(tmp_path / "out")[victim] == reasons.GONE
    after = shards(tmp_path / "out")
    assert {name for name in before if before[name] != after.get(name)} == {"val/shard-00000.mdb"}
    (source / victim).write_bytes(zoo.png(zoo.pattern(20, 20, 1)))
    assert shard(shard_mb=1).accepted == 90
    assert reasons_of(tmp_path / "out")[victim] is None


@pytest.mark.parametrize("by", ["id", "sha256"])
def test_a_removal_rewrites_one_shard_and_forgets_the_image(
    shard: Shard, source: Path, tmp_path: Path, by: str
) -> None:
    shard()
    before = shards(tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    row = next(row for row in manifest.to_pylist() if row["split"] == "test")
    listed = tmp_path / "removals.txt"
    listed.write_text(f"# asked for on a Monday\n\n{row['key'] if by == 'id' else row['sha256']}\n")
    info = shard(removals=read_removals(listed))
    assert (info.accepted, info.set_aside) == (89, 1)
    after = shards(tmp_path / "out")
    assert {name for name in before if before[name] != after.get(name)} == {"test/shard-00000.mdb"}
    (left,) = (
        one for one in read_manifest(tmp_path / "out").to_pylist() if one["key"] == row["key"]
    )
    assert left["reason"] == reasons.REMOVED
    known = {name for name, value in left.items() if value is not None}
    assert known - {"label"} == {"key", "accepted", "reason", "detail"}
    image = (source / row["key"]).read_bytes()
    assert all(image not in path.read_bytes() for path in (tmp_path / "out").rglob("*.mdb"))


def test_an_image_that_changed_is_examined_and_stored_again(
    shard: Shard, source: Path, tmp_path: Path
) -> None:
    shard()
    was = splits_of(tmp_path / "out")
    (source / "m" / "0003.png").write_bytes(zoo.png(zoo.pattern(50, 60, 1)))
    info = shard()
    assert info.accepted == 90
    assert splits_of(tmp_path / "out") == was
    reader = ShardReader(tmp_path / "out", was["m/0003.png"])
    assert reader.pixels(reader.keys.index("m/0003.png")).shape == (50, 60, 1)


def test_other_parameters_make_it_anew(shard: Shard, source: Path, tmp_path: Path) -> None:
    shard()
    zoo.write_images(source / "b", 20)
    shard()
    shard(min_side=9)
    shard("fresh", min_side=9)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_what_is_known_is_not_found_out_again(
    shard: Shard, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard()
    zoo.write_images(source / "b", 2)
    examined = []
    from mae.data.sharding import probing

    real = probing.examine
    monkeypatch.setattr(
        probing, "examine", lambda record, data: examined.append(record.id) or real(record, data)
    )
    shard()
    assert sorted(examined) == ["b/0000.png", "b/0001.png"]
    examined.clear()
    from mae.data.sharding import run as sharding

    monkeypatch.setattr(sharding, "code_of", lambda: "other code")
    shard()
    assert len(examined) == 92


def test_a_lost_shard_is_noticed(
    shard: Shard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard()
    before = tree(tmp_path / "out")
    (tmp_path / "out" / "val" / "shard-00000.mdb").unlink()
    shard()
    assert "val/shard-00000.mdb is missing" in caplog.text
    assert tree(tmp_path / "out") == before


def test_removals_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "removals.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_removals(tmp_path / "removals.txt")
    assert read_removals(tmp_path / "absent.txt") == Removals()
