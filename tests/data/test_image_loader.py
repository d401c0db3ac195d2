"""A batch is a pure function of (seed, purpose, step)."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks.photos import photo
from mae.data.loading import cache
from mae.data.loading.batch import Batch, prefetch
from mae.data.loading.crops import aligned, random_crops
from mae.data.loading.loader import EvalLoader, StepOrder, TrainLoader
from mae.data.loading.resample import resample_one
from mae.data.loading.views import evaluation_view
from mae.data.reader import ShardReader
from mae.data.sharding.run import shard_dataset
from mae.errors import DataError
from mae.params import AugmentParams
from tests.data import zoo
from tests.data.zoo import MakeParams

AUGMENT = AugmentParams(crop_area=(0.3, 1.0), crop_aspect=(0.75, 1.333), flip=True)


def train_loader(folder: Path, **changes: Any) -> TrainLoader:
    values = {
        "height": 24,
        "width": 28,
        "batch": 20,
        "seed": 0,
        "purpose": "test",
        "augment": AUGMENT,
        "workers": 2,
        "cache_mb": 64,
        **changes,
    }
    return TrainLoader(ShardReader(folder, "train"), **values)


def eval_loader(folder: Path, **changes: Any) -> EvalLoader:
    values = {"height": 32, "width": 24, "resize": 1.0, "batch": 16, "workers": 2, "cache_mb": 64}
    return EvalLoader(ShardReader(folder, "train"), **{**values, **changes})


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(getattr(x, name), getattr(y, name))
        for x, y in zip(a, b, strict=True)
        for name in ("images", "ids", "labels")
    )


@pytest.fixture(scope="session", params=["small", "mixed"])
def shards(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"{request.param}_shards")


def test_batches_have_the_shape_asked_for(shards: Path) -> None:
    loader = train_loader(shards)
    (batch,) = loader.batches(0, 1)
    channels = loader._reader.info.channels
    assert batch.images.shape == (20, channels, 24, 28)
    assert batch.images.dtype == torch.uint8
    assert batch.ids.dtype == batch.labels.dtype == torch.int64
    assert len(batch) == 20


def test_starting_later_gives_the_rest_of_the_same_batches(shards: Path) -> None:
    everything = list(train_loader(shards).batches(0, 9))
    assert same(list(train_loader(shards).batches(4, 9)), everything[4:])


@pytest.mark.parametrize("changes", [{"workers": 1}, {"workers": 5}, {"cache_mb": 0}])
def test_runtime_knobs_change_nothing(shards: Path, changes: dict[str, int]) -> None:
    expected = list(train_loader(shards).batches(0, 5))
    assert same(list(train_loader(shards, **changes).batches(0, 5)), expected)


@pytest.mark.parametrize("world_size", [2, 4, 5])
def test_ranks_partition_the_batch(shards: Path, world_size: int) -> None:
    ranks = [
        list(train_loader(shards, rank=rank, world_size=world_size).batches(0, 3))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(train_loader(shards).batches(0, 3)):
        parts = [ranks[rank][step] for rank in range(world_size)]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.ids for part in parts]), batch.ids)


def test_ranks_that_cannot_share_equally_are_refused(small_shards: Path) -> None:
    with pytest.raises(DataError, match="shared equally by 3 processes"):
        train_loader(small_shards, world_size=3)


def test_an_epoch_visits_each_image_at_most_once_in_an_order_of_its_own(shards: Path) -> None:
    loader = train_loader(shards, batch=7)
    steps = loader.steps_per_epoch
    assert steps == loader.images // 7
    epochs = []
    for epoch in range(2):
        ids = torch.cat([b.ids for b in loader.batches(epoch * steps, (epoch + 1) * steps)])
        assert max(Counter(ids.tolist()).values()) == 1
        assert {loader.epoch_of(s) for s in range(epoch * steps, (epoch + 1) * steps)} == {epoch}
        epochs.append(ids)
    assert not torch.equal(*epochs)


def test_an_image_looks_different_each_epoch_and_for_each_seed_and_purpose(
    small_shards: Path,
) -> None:
    def view(**changes: Any) -> torch.Tensor:
        step = changes.pop("step", 0)
        loader = train_loader(
            small_shards, batch=len(ShardReader(small_shards, "train")), **changes
        )
        (batch,) = loader.batches(step, step + 1)
        return batch.images[batch.ids.argsort()]

    first = view()
    assert torch.equal(first, view())
    for changes in ({"step": 1}, {"seed": 1}, {"purpose": "other"}):
        other = view(**changes)
        assert (first != other).flatten(1).any(dim=1).float().mean() > 0.95


def test_a_subset_is_learned_from_alone(small_shards: Path) -> None:
    positions = torch.tensor([3, 5, 8, 13, 21])
    loader = train_loader(small_shards, batch=4, positions=positions)
    assert (loader.images, loader.steps_per_epoch) == (5, 1)
    wanted = set(ShardReader(small_shards, "train").ids[positions].tolist())
    assert {i for batch in loader.batches(0, 20) for i in batch.ids.tolist()} == wanted


def test_a_set_smaller_than_the_batch_is_one_batch(small_shards: Path) -> None:
    loader = train_loader(small_shards, batch=64, positions=torch.arange(6))
    assert [len(batch) for batch in loader.batches(0, 3)] == [6, 6, 6]
    with pytest.raises(DataError, match="no image to learn from"):
        train_loader(small_shards, positions=torch.arange(0))


def test_two_iterators_at_once_do_not_meet(small_shards: Path) -> None:
    loader = train_loader(small_shards)
    expected = list(loader.batches(0, 6))
    first, second = loader.batches(0, 6), loader.batches(2, 6)
    mixed = [(next(first), next(second)) for _ in range(4)]
    assert same([a for a, _ in mixed], expected[:4])
    assert same([b for _, b in mixed], expected[2:])
    first.close()


def test_faults_in_threads_reach_the_consumer(
    small_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ShardReader, index: int) -> None:
        raise DataError(f"image {index} is damaged")

    monkeypatch.setattr(ShardReader, "pixels", fail)
    with pytest.raises(DataError, match="is damaged"):
        next(train_loader(small_shards).batches(0, 3))
    with pytest.raises(DataError, match="is damaged"):
        next(iter(eval_loader(small_shards)))


def test_closing_early_leaves_no_thread(small_shards: Path) -> None:
    before = threading.active_count()
    batches = train_loader(small_shards).batches(0, 10**6)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_waiting_is_counted(small_shards: Path) -> None:
    loader = train_loader(small_shards)
    list(loader.batches(0, 3))
    assert loader.wait_seconds > 0


def test_micro_batches_are_equal_parts(small_shards: Path) -> None:
    (batch,) = train_loader(small_shards).batches(0, 1)
    parts = batch.to("cpu").split(4)
    assert [len(part) for part in parts] == [5] * 4
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    with pytest.raises(ValueError, match="equal parts"):
        batch.split(3)


# --- evaluation -------------------------------------------------------------------------------


def test_evaluation_sees_every_image_once_in_order(shards: Path) -> None:
    loader = eval_loader(shards)
    batches = list(loader)
    reader = ShardReader(shards, "train")
    assert torch.equal(torch.cat([batch.ids for batch in batches]), reader.ids)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), reader.labels)
    assert len(batches) == len(loader)
    assert [len(batch) for batch in batches[:-1]] == [16] * (len(batches) - 1)
    assert same(list(loader), batches)


def test_evaluation_at_the_images_own_shape_gives_its_pixels(small_shards: Path) -> None:
    reader = ShardReader(small_shards, "train")
    images = torch.cat([batch.images for batch in eval_loader(small_shards)])
    for index in range(len(reader)):
        assert np.array_equal(images[index].permute(1, 2, 0), reader.pixels(index))


def test_evaluation_is_resize_and_centre_crop(shards: Path) -> None:
    reader = ShardReader(shards, "train")
    loader = eval_loader(shards, height=21, width=21, resize=24 / 21)
    images = torch.cat([batch.images for batch in loader])
    transform = v2.Compose([v2.Resize(24, v2.InterpolationMode.BICUBIC), v2.CenterCrop(21)])
    agreeing = 0
    for index in range(len(reader)):
        planes = torch.from_numpy(reader.pixels(index).copy()).permute(2, 0, 1)
        # torchvision cuts the longer side down where we round it: compare where they agree.
        height, width = planes.shape[1:]
        if (24 * max(height, width) / min(height, width)) % 1 >= 0.5:
            continue
        agreeing += 1
        difference = (transform(planes).int() - images[index].int()).abs()
        assert difference.max() <= 2
    assert agreeing >= 10


def test_sixteen_bits_and_many_bands_arrive(tmp_path: Path, make_params: MakeParams) -> None:
    (tmp_path / "a").mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        bands = random.integers(0, 65536, (30, 26 + number % 2, 13)).astype(np.uint16)
        (tmp_path / "a" / f"{number}.npy").write_bytes(zoo.npy(bands))
    params = make_params(
        images=tmp_path / "a", channels=13, bit_depth=16, splits={"val": 0.0, "test": 0.0}
    )
    info = shard_dataset("images", params, 0, tmp_path / "s")
    assert info.channels == 13
    (batch,) = train_loader(tmp_path / "s", batch=12).batches(0, 1)
    assert batch.images.shape == (12, 13, 24, 28)
    assert batch.images.dtype == torch.uint16
    assert int(batch.images.to(torch.int32).max()) > 60_000


def test_decoded_images_are_kept_within_the_limit(
    tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.write_images(tmp_path / "a", 40, height=32, width=32)
    params = make_params(images=tmp_path / "a", splits={"val": 0.0, "test": 0.0})
    shard_dataset("images", params, 0, tmp_path / "s")
    decoded: list[int] = []
    pixels = ShardReader.pixels

    def counted(self: ShardReader, index: int) -> Any:
        decoded.append(index)
        return pixels(self, index)

    monkeypatch.setattr(ShardReader, "pixels", counted)
    monkeypatch.setattr(cache, "_MEGABYTE", 16 * 32 * 32)
    for cache_mb, decoded_again in ((0, 40), (1, 24), (100, 0)):
        monkeypatch.setattr(cache, "_kept", WeakKeyDictionary())  # as if no reader were there yet
        reader = ShardReader(tmp_path / "s", "train")
        frame = {"height": 32, "width": 32, "resize": 1.0}
        loader = EvalLoader(reader, **frame, batch=8, workers=2, cache_mb=cache_mb)
        list(loader)
        decoded.clear()
        list(loader)
        assert len(decoded) == decoded_again


# --- JPEGs and raw images, decoded no further than needed ---------------------------------------


def decoded_in_full(reader: ShardReader, batch: Batch) -> Iterator[np.ndarray]:
    """Yield what each row of step 0 is when the whole image is decoded first."""
    where = {identity: index for index, identity in enumerate(reader.ids.tolist())}
    indices = torch.tensor([where[identity] for identity in batch.ids.tolist()])
    height, width = batch.images.shape[2:]
    crops, flips = random_crops(
        *(0, "test", 0, batch.ids, reader.heights[indices], reader.widths[indices], AUGMENT)
    )
    crops = aligned(crops, height, width)
    for index, crop, flip in zip(indices.tolist(), crops.tolist(), flips.tolist(), strict=True):
        yield resample_one(reader.pixels(index), tuple(crop), height, width, flip)


def photos(folder: Path, count: int, height: int, width: int, **options: Any) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        image = Image.fromarray(photo(number, height + number, width - number, grain=4.0))
        (folder / f"{number}.jpg").write_bytes(zoo.encoded(image, "JPEG", quality=92, **options))


@pytest.fixture(scope="session")
def photo_shards(tmp_path_factory: pytest.TempPathFactory, make_params: MakeParams) -> Path:
    """20 colour JPEGs of about 330 x 410, of which one lies on its side and one is progressive."""
    root = tmp_path_factory.mktemp("photos")
    photos(root / "a", 18, 330, 410)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (("turned", {"exif": exif}), ("slow", {"progressive": True})):
        image = Image.fromarray(photo(99, 340, 420, grain=4.0))
        (root / "a" / f"{name}.jpg").write_bytes(zoo.encoded(image, "JPEG", **options))
    splits = {"val": 0.0, "test": 0.0, "stratify": False}
    params = make_params(images=root / "a", channels=3, splits=splits)
    shard_dataset("images", params, 0, root / "s")
    return root / "s"


@pytest.mark.parametrize(("height", "width"), [(200, 220), (64, 72), (30, 20)])
def test_jpegs_come_alike_whatever_is_kept(photo_shards: Path, height: int, width: int) -> None:
    frame = {"height": height, "width": width}
    expected = list(train_loader(photo_shards, cache_mb=0, **frame).batches(0, 6))
    for cache_mb, workers in ((1, 3), (3, 2), (100, 1), (100, 2)):
        loader = train_loader(photo_shards, cache_mb=cache_mb, workers=workers, **frame)
        assert same(list(loader.batches(0, 6)), expected)
    views = list(eval_loader(photo_shards, cache_mb=0, resize=1.1, **frame))
    assert same(list(eval_loader(photo_shards, cache_mb=100, resize=1.1, **frame)), views)


def test_without_reduction_a_crop_is_that_of_the_whole_image(photo_shards: Path) -> None:
    reader = ShardReader(photo_shards, "train")
    loader = train_loader(photo_shards, height=200, width=220, cache_mb=0)
    (batch,) = loader.batches(0, 1)
    for found, expected in zip(batch.images, decoded_in_full(reader, batch), strict=True):
        assert np.array_equal(found, expected)


def test_with_reduction_a_crop_looks_like_that_of_the_whole_image(photo_shards: Path) -> None:
    reader = ShardReader(photo_shards, "train")
    loader = train_loader(photo_shards, height=64, width=72, cache_mb=0)
    (batch,) = loader.batches(0, 1)
    exact = 0
    for found, expected in zip(batch.images, decoded_in_full(reader, batch), strict=True):
        error = ((found.double() - torch.from_numpy(expected.astype(float))) ** 2).mean()
        exact += not error
        assert 10 * torch.log10(255**2 / error) > 40
    assert exact < 12


def test_a_large_photo_is_evaluated_as_if_it_were_decoded_in_full(
    tmp_path: Path, make_params: MakeParams
) -> None:
    (tmp_path / "a").mkdir()
    for number, (height, width) in enumerate([(640, 800), (641, 800), (640, 808), (480, 320)]):
        image = Image.fromarray(photo(number, height, width, grain=4.0))
        content = zoo.encoded(image, "JPEG", quality=92)
        (tmp_path / "a" / f"{number}.jpg").write_bytes(content)
    splits = {"val": 0.0, "test": 0.0, "stratify": False}
    params = make_params(images=tmp_path / "a", channels=3, splits=splits)
    shard_dataset("images", params, 0, tmp_path / "s")
    reader = ShardReader(tmp_path / "s", "train")
    (batch,) = eval_loader(tmp_path / "s", height=112, width=112, resize=256 / 224)
    exact = []
    for index, found in enumerate(batch.images):
        expected = evaluation_view(reader.pixels(index), 112, 112, 256 / 224)
        error = ((found.double() - torch.from_numpy(expected.astype(float))) ** 2).mean()
        exact.append(not error)
        assert 10 * torch.log10(255**2 / error) > 40
    # Of odd height: a half of it does not end between pixels.
    odd = [int(height) % 2 == 1 for height in reader.heights]
    assert exact == odd


def test_raw_images_are_seen_without_a_copy(tmp_path: Path, make_params: MakeParams) -> None:
    (tmp_path / "a").mkdir()
    stored = [photo(number, 150, 160) for number in range(6)]
    for number, pixels in enumerate(stored):
        (tmp_path / "a" / f"{number}.npy").write_bytes(zoo.npy(pixels))
    splits = {"val": 0.0, "test": 0.0, "stratify": False}
    params = make_params(images=tmp_path / "a", channels=3, splits=splits)
    shard_dataset("images", params, 0, tmp_path / "s")
    reader = ShardReader(tmp_path / "s", "train")
    images = cache.PixelCache(reader, 64)
    for index, key in enumerate(reader.keys):
        pixels, where = images.part(index, (3, 5, 100, 90), 64, 64)
        assert where == (3, 5, 100, 90)
        assert np.array_equal(pixels, stored[int(key.removesuffix(".npy"))])
        assert not pixels.flags.writeable
        assert not pixels.flags.owndata
    assert not images._mine.images
    loader = train_loader(tmp_path / "s", batch=6, height=64, width=64)
    (batch,) = loader.batches(0, 1)
    for found, expected in zip(batch.images, decoded_in_full(reader, batch), strict=True):
        assert np.array_equal(found, expected)


# --- order --------------------------------------------------------------------------------------


def order_of(window: int, epoch: int, seed: int = 0) -> torch.Tensor:
    shards = torch.arange(120) // 10
    order = StepOrder(120, 8, seed, "test", 0, 1, window=window, shards=shards)
    steps = range(epoch * 15, (epoch + 1) * 15)
    return torch.cat([order.rows(step) for step in steps])


@pytest.mark.parametrize("window", [0, 1, 3, 5, 12, 50])
def test_each_image_comes_once_an_epoch_whatever_the_window(window: int) -> None:
    for epoch in range(3):
        assert order_of(window, epoch).sort().values.tolist() == list(range(120))
        assert torch.equal(order_of(window, epoch), order_of(window, epoch))
    assert not torch.equal(order_of(window, 0), order_of(window, 1))
    assert not torch.equal(order_of(window, 0), order_of(window, 0, seed=1))


def test_a_window_mixes_so_many_shards_at_a_time() -> None:
    for epoch in range(3):
        shards = order_of(3, epoch) // 10
        windows = [set(part.tolist()) for part in shards.split(30)]
        assert [len(window) for window in windows] == [3] * 4
        assert set.union(*windows) == set(range(12))
        assert any(shards[start] != shards[start + 1] for start in range(29))
    assert set((order_of(3, 0)[:30] // 10).tolist()) != set((order_of(3, 1)[:30] // 10).tolist())


def test_the_loader_follows_the_window(small_shards: Path) -> None:
    reader = ShardReader(small_shards, "train")
    count = len(reader)
    reader.shards = torch.arange(count) // 13
    values = {"height": 24, "width": 28, "seed": 0, "purpose": "test", "augment": AUGMENT}
    loader = TrainLoader(reader, batch=5, workers=2, cache_mb=1, shuffle_window=2, **values)
    ids = torch.cat([batch.ids for batch in loader.batches(0, loader.steps_per_epoch)])
    shard_of = dict(zip(reader.ids.tolist(), reader.shards.tolist(), strict=True))
    assert len({shard_of[identity] for identity in ids[:26].tolist()}) <= 3
    assert len(set(ids.tolist())) == len(ids)


# --- on the device ------------------------------------------------------------------------------


def test_prefetching_changes_nothing_and_closes_its_source(shards: Path) -> None:
    loader = train_loader(shards)
    expected = list(loader.batches(0, 4))
    assert same(list(prefetch(loader.batches(0, 4), "cpu")), expected)
    before = threading.active_count()
    ahead = prefetch(loader.batches(0, 10**6), torch.device("cpu"))
    assert same([next(ahead)], expected[:1])
    ahead.close()
    assert threading.active_count() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_prefetching_onto_a_gpu_brings_the_same_batches(shards: Path) -> None:
    loader = train_loader(shards)
    moved = list(prefetch(loader.batches(0, 6), "cuda"))
    assert all(batch.images.is_cuda for batch in moved)
    assert same([batch.to("cpu") for batch in moved], list(loader.batches(0, 6)))


@pytest.mark.slow
def test_memory_stays_flat_over_many_reads(tmp_path: Path, make_params: MakeParams) -> None:
    def resident_mb() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    photos(tmp_path / "a", 40, 132, 170)
    splits = {"val": 0.0, "test": 0.0, "stratify": False}
    params = make_params(images=tmp_path / "a", channels=3, splits=splits)
    shard_dataset("images", params, 0, tmp_path / "s")
    loader = train_loader(tmp_path / "s", batch=40, height=32, width=32, cache_mb=0)
    batches = loader.batches(0, 1 << 40)
    for _ in range(500):
        next(batches)
    before = resident_mb()
    for _ in range(5000):  # 200,000 images read and decoded
        next(batches)
    batches.close()
    assert resident_mb() - before < 20
