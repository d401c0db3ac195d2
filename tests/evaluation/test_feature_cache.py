"""Features on disk: those of the images, computed once, whole or not there, by any number of
processes."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from mae.errors import DataError
from mae.evaluation import feature_cache
from mae.evaluation.arms import frozen_arms
from mae.evaluation.feature_cache import features_of
from mae.evaluation.features import Embedder, FrozenArm
from mae.evaluation.labelled import LabelledSplit, all_images, labelled_split
from mae.model.artifact import load_encoder
from mae.params import Params
from mae.pixels import PixelNormalizer
from mae.training.devices import Place, joined
from tests.ports import free_port

HERE = Place(torch.device("cpu"))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for features, and batches small enough that the last is a ragged third."""
    monkeypatch.setattr(feature_cache, "FOLDER", tmp_path / "features")
    monkeypatch.setattr(feature_cache, "EVALUATION_BATCH", 48)
    return tmp_path / "features"


@pytest.fixture
def test_split(digit_shards: Path) -> LabelledSplit:
    return labelled_split(digit_shards, "test")


@pytest.fixture
def arms(make_params, tiny_encoder: Path) -> dict[str, FrozenArm]:
    return frozen_arms(make_params(), load_encoder(tiny_encoder), pixels=True)


def never(self: Embedder, stored: Tensor) -> Tensor:
    raise AssertionError("computed again")


def test_features_are_those_of_the_images_in_order(kept, test_split, arms, make_params) -> None:
    arm = arms["pretrained"]
    found = {
        feature: features_of(arm, test_split, feature, make_params(), HERE)
        for feature in ("cls", "mean", "both")
    }
    stored = [torch.tensor(test_split.reader.pixels(i)) for i in test_split.positions.tolist()]
    images = PixelNormalizer(arm.statistics)(torch.stack(stored).permute(0, 3, 1, 2))
    with torch.no_grad():
        expected = arm.encoder(images)
    torch.testing.assert_close(found["cls"], expected.cls, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["mean"], expected.mean, atol=1e-5, rtol=1e-4)
    assert torch.equal(found["both"], torch.cat([found["cls"], found["mean"]], dim=1))
    assert all(vectors.dtype == torch.float32 for vectors in found.values())
    pixels = features_of(arms["pixels"], test_split, "cls", make_params(), HERE)
    torch.testing.assert_close(pixels, images.flatten(1))


def test_they_are_computed_once(kept, test_split, arms, make_params, monkeypatch) -> None:
    first = features_of(arms["random"], test_split, "cls", make_params(), HERE)
    monkeypatch.setattr(Embedder, "__call__", never)
    again = features_of(arms["random"], test_split, "cls", make_params(), HERE)
    assert torch.equal(first, again)
    features_of(arms["random"], test_split, "both", make_params(), HERE)
    assert len(list(kept.iterdir())) == 1


def test_writing_to_them_changes_no_file(kept, test_split, arms, make_params) -> None:
    first = features_of(arms["pixels"], test_split, "cls", make_params(), HERE)
    before = first.clone()
    first.zero_()
    assert torch.equal(features_of(arms["pixels"], test_split, "cls", make_params(), HERE), before)


def test_other_weights_images_or_frames_are_other_features(
    kept, test_split, arms, make_params, digit_shards
) -> None:
    import dataclasses

    arm = arms["pretrained"]
    larger = dataclasses.replace(arm, resize=1.5)
    brighter = dataclasses.replace(arm, statistics=dataclasses.replace(arm.statistics, mean=(0.1,)))
    train = labelled_split(digit_shards, "train")
    asked = [(one, test_split) for one in (arm, arms["random"], larger, brighter)]
    asked += [(arm, train), (arm, train.take(torch.arange(9)))]
    asked += [(arm, all_images(digit_shards, "train", at_most=9))]
    for one, split in asked:
        features_of(one, split, "cls", make_params(), HERE)
    assert len(list(kept.iterdir())) == len(asked)


@pytest.mark.parametrize("harm", ["flip", "cut", "about", "gone"])
def test_a_damaged_file_is_made_again(
    kept, test_split, arms, make_params, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = features_of(arms["random"], test_split, "cls", make_params(), HERE).clone()
    (folder,) = kept.iterdir()
    file = folder / "features.npy"
    content = bytearray(file.read_bytes())
    if harm == "flip":
        content[-5] ^= 1
        file.write_bytes(content)
    elif harm == "cut":
        file.write_bytes(content[:-7])
    elif harm == "about":
        (folder / "about.json").write_text("{")
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING):
        again = features_of(arms["random"], test_split, "cls", make_params(), HERE)
    assert torch.equal(first, again)
    assert ("damaged" in caplog.text) == (harm != "gone")


def test_what_fails_half_way_leaves_nothing(
    kept, test_split, arms, make_params, monkeypatch
) -> None:
    compute, calls = Embedder.__call__, []

    def fails_at_last(self: Embedder, stored: Tensor) -> Tensor:
        calls.append(len(stored))
        if len(calls) == 3:
            raise RuntimeError("killed")
        return compute(self, stored)

    monkeypatch.setattr(Embedder, "__call__", fails_at_last)
    with pytest.raises(RuntimeError, match="killed"):
        features_of(arms["random"], test_split, "cls", make_params(), HERE)
    assert calls == [48, 48, 24]
    assert [path for path in kept.rglob("*") if path.is_file()] == []


def test_a_full_disk_is_said(kept, test_split, arms, make_params, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(DataError, match=r"cannot be kept in .*features \(No space left"):
        features_of(arms["random"], test_split, "cls", make_params(), HERE)


def test_features_that_are_not_finite_are_refused(kept, test_split, arms, make_params) -> None:
    with torch.no_grad():
        arms["random"].encoder.norm.weight[0] = float("nan")
    with pytest.raises(DataError, match="features of 'random' are not finite"):
        features_of(arms["random"], test_split, "cls", make_params(), HERE)
    assert [path for path in kept.rglob("*") if path.is_file()] == []


def test_what_was_not_used_for_longest_makes_room(
    kept, test_split, arms, make_params, monkeypatch
) -> None:
    monkeypatch.setattr(feature_cache, "_KEPT", 2)
    for age, name in ((9000, "oldest"), (8000, "older"), (7000, "old"), (10, "in use")):
        (kept / name).mkdir(parents=True)
        when = (kept / name).stat().st_mtime - age
        os.utime(kept / name, (when, when))
    features_of(arms["pixels"], test_split, "cls", make_params(), HERE)
    left = {path.name for path in kept.iterdir()}
    assert {"in use", "old"} < left and not {"oldest", "older"} & left
    # A mapped file may go as well: whoever reads it keeps it.
    mapped = features_of(arms["pixels"], test_split, "cls", make_params(), HERE)
    total = float(mapped.sum())
    for path in kept.rglob("features.npy"):
        path.unlink()
    assert float(mapped.sum()) == total


def extract_as_one_of_two(
    rank: int, port: int, shards: Path, encoder: Path, params: Params, folder: Path
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    feature_cache.FOLDER = folder / "features"
    feature_cache.EVALUATION_BATCH = 48
    arms = frozen_arms(params, load_encoder(encoder), pixels=False)
    with joined("cpu") as place:
        for split in ("test", "train"):
            images = labelled_split(shards, split)
            found = features_of(arms["pretrained"], images, "both", params, place)
            torch.save(found.clone(), folder / f"{split}-{rank}.pt")


def test_two_processes_compute_what_one_does(
    kept, digit_shards, tiny_encoder, make_params, tmp_path
) -> None:
    port = free_port()
    params = make_params()
    arguments = (port, digit_shards, tiny_encoder, params, tmp_path / "two")
    (tmp_path / "two").mkdir()
    mp.spawn(extract_as_one_of_two, arguments, nprocs=2)
    arms = frozen_arms(params, load_encoder(tiny_encoder), pixels=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # 120 images are 3 batches, the last one half full; 360 are 8, the last one half full.
        for split in ("test", "train"):
            images = labelled_split(digit_shards, split)
            alone = features_of(arms["pretrained"], images, "both", params, HERE)
            for rank in range(2):
                found = torch.load(tmp_path / "two" / f"{split}-{rank}.pt", weights_only=True)
                # Matrix products may round otherwise where the memory lies otherwise.
                torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)
    finally:
        torch.set_num_threads(threads)
