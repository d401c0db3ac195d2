"""Readers share environments, survive forks and pickles, and notice damage."""

import multiprocessing
import os
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import torch

from mae.data.reader import ShardReader
from mae.errors import DataError


def test_contract_of_a_reader(small_shards: Path) -> None:
    reader = ShardReader(small_shards, "train")
    assert len(reader) == len(reader.ids) == len(reader.labels) == len(reader.keys)
    assert reader.ids.dtype == reader.labels.dtype == torch.int64
    assert set(reader.labels.tolist()) == {0, 1}
    assert reader.shape == (32, 24)
    assert reader.annotations(0) == []
    assert reader.pixels(0).shape == (32, 24, 1)


def test_a_split_that_is_not_there_is_named(small_shards: Path) -> None:
    with pytest.raises(DataError, match="no extra images"):
        ShardReader(small_shards, "extra")


def test_two_readers_of_one_shard_and_a_link_to_it(small_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(small_shards)
    first = ShardReader(small_shards, "train")
    second = ShardReader(tmp_path / "linked", "train")
    assert first.read(3) == second.read(3)


def test_a_shard_written_anew_is_read_anew(small_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(small_shards, tmp_path / "s")
    old = ShardReader(tmp_path / "s", "val").read(0)
    (tmp_path / "s" / "val").rename(tmp_path / "away")
    shutil.copytree(tmp_path / "away", tmp_path / "s" / "val")
    assert ShardReader(tmp_path / "s", "val").read(0) == old


def test_pickled_readers_read(small_shards: Path) -> None:
    reader = ShardReader(small_shards, "train")
    expected = reader.read(5)
    assert pickle.loads(pickle.dumps(reader)).read(5) == expected


def test_reading_after_a_fork(small_shards: Path) -> None:
    reader = ShardReader(small_shards, "train")
    expected = [reader.read(index) for index in range(10)]
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)

    def child() -> None:
        again = ShardReader(small_shards, "train")
        send.send([reader.read(i) == again.read(i) == expected[i] for i in range(10)])

    process = fork.Process(target=child)
    process.start()
    assert receive.poll(60)
    assert all(receive.recv())
    process.join(60)
    assert process.exitcode == 0
    assert reader.read(0) == expected[0]


def test_many_threads_read_at_once(small_shards: Path) -> None:
    reader = ShardReader(small_shards, "train")
    expected = [reader.read(index) for index in range(len(reader))]
    faults: list[int] = []

    def read_all() -> None:
        mine = ShardReader(small_shards, "train")
        faults.extend(i for i in range(len(mine)) if mine.read(i) != expected[i])

    threads = [threading.Thread(target=read_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_damage_names_the_image_and_the_shard(small_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(small_shards, tmp_path / "s")
    reader = ShardReader(tmp_path / "s", "train")
    shard = tmp_path / "s" / "train" / "shard-00000.mdb"
    content = bytearray(shard.read_bytes())
    place = content.index(ShardReader(small_shards, "train").read(7))
    content[place + 100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError) as caught:
        reader.read(7)
    assert reader.keys[7] in str(caught.value)
    assert "shard-00000.mdb" in str(caught.value)
    assert reader.read(6) == ShardReader(small_shards, "train").read(6)


@pytest.mark.parametrize("fate", ["lost", "not LMDB"])
def test_a_shard_that_is_gone_or_foreign(small_shards: Path, tmp_path: Path, fate: str) -> None:
    shutil.copytree(small_shards, tmp_path / "s")
    shard = tmp_path / "s" / "test" / "shard-00000.mdb"
    shard.unlink()
    if fate == "not LMDB":
        shard.write_bytes(os.urandom(8192))
    with pytest.raises(DataError, match="cannot be opened"):
        ShardReader(tmp_path / "s", "test").read(0)


def test_reading_writes_nothing_beside_the_shards(small_shards: Path) -> None:
    ShardReader(small_shards, "train").read(0)
    assert not list(small_shards.rglob("*lock*"))
