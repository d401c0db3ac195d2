"""RandAugment, erasing, mixup and cutmix: timm's semantics, drawn by hash."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm.data.auto_augment as timm_ops
import timm.data.mixup as timm_mixup
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from mae.data.loading.augment import AugmentedBatch, AugmentedLoader, with_augmentations
from mae.data.loading.loader import TrainLoader
from mae.data.loading.mixing import (
    draw_erasing,
    draw_mixing,
    erase,
    mix_images,
    mix_targets,
    partners,
)
from mae.data.loading.randaugment import RandAugment, level_arguments, magnitude
from mae.data.reader import ShardReader
from mae.data.sharding.run import shard_dataset
from mae.errors import ParamsError
from mae.params import FinetuneAugmentParams, parse_params, read_params
from mae.pixels import PixelStatistics

ROOT = Path(__file__).parents[2]
GREY = PixelStatistics((0.3,), (0.2,), 8)
COLOUR = PixelStatistics((0.1, 0.5, 0.9), (0.2, 0.2, 0.2), 8)
RECIPE = "rand-m9-mstd0.5-inc1"
IDS = torch.arange(40)


def noise(channels: int, count: int = 8) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, channels, 12, 16), dtype=np.uint8)


def augmented(specification: str, images: np.ndarray, **changes: Any) -> np.ndarray:
    statistics = GREY if images.shape[1] == 1 else COLOUR
    drawn = {"seed": 0, "purpose": "test", "epoch": 0} | changes
    result = images.copy()
    RandAugment(specification, statistics)(result, IDS[: len(images)], **drawn)
    return result


# --- RandAugment ------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("specification", [RECIPE, "rand-m5-n3-p1", "rand-mstd101-t3aw", "rand"])
def test_an_image_is_changed_by_its_own_draws_alone(channels: int, specification: str) -> None:
    images = noise(channels)
    changed = augmented(specification, images)
    assert changed.shape == images.shape and not np.array_equal(changed, images)
    assert np.array_equal(changed, augmented(specification, images))
    alone = images[3:4].copy()
    statistics = GREY if channels == 1 else COLOUR
    RandAugment(specification, statistics)(alone, IDS[3:4], seed=0, purpose="test", epoch=0)
    assert np.array_equal(alone[0], changed[3])
    for other in ({"seed": 1}, {"epoch": 1}, {"purpose": "other"}):
        assert not np.array_equal(changed, augmented(specification, images, **other))


def test_global_generators_are_neither_read_nor_moved() -> None:
    import random

    images = noise(3)
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].copy()
    first = augmented("rand-m9-mstd0.5-inc1-p1", images)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    random.seed(5)
    np.random.seed(5)
    assert np.array_equal(first, augmented("rand-m9-mstd0.5-inc1-p1", images))


NAMES = sorted(
    {*timm_ops._RAND_TRANSFORMS, *timm_ops._RAND_INCREASING_TRANSFORMS, *timm_ops._RAND_3A}
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0.0, 4.3, 9.0, 10.0])
def test_strengths_are_those_of_timm(
    name: str, level: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = timm_ops.AugmentOp(name)
    for coin, negative in ((0.9, True), (0.1, False)):
        monkeypatch.setattr(timm_ops, "random", SimpleNamespace(random=lambda coin=coin: coin))
        theirs = () if operation.level_fn is None else operation.level_fn(level, operation.hparams)
        if name.startswith("Posterize"):
            theirs = (max(1, theirs[0]),)  # Pillow knows no picture of 0 bits
        assert level_arguments(operation, level, negative) == pytest.approx(tuple(theirs))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_works_at_both_ends_of_the_scale(name: str, channels: int) -> None:
    settings = {"img_mean": 128 if channels == 1 else (128, 128, 128), "interpolation": 3}
    operation = timm_ops.AugmentOp(name, hparams=settings)
    pixels = noise(channels, count=1)[0]
    picture = Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0).copy())
    for level in (0.0, 10.0):
        for negative in (True, False):
            arguments = level_arguments(operation, level, negative)
            changed = operation.aug_fn(picture, *arguments, **operation.kwargs)
            assert changed.size == picture.size and changed.mode == picture.mode


def test_the_whole_chain_equals_timm_where_nothing_is_left_to_chance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With every operation applied, timm's own, fed the choices made here, gives the same image."""
    images = noise(3, count=6)
    ours = augmented("rand-m9-p1-inc1", images)
    chosen: list[tuple[str, bool]] = []
    apply = RandAugment._applied

    def watched(self: RandAugment, operation: Any, picture: Image.Image, layer: Any) -> Image.Image:
        chosen.append((operation.name, bool(layer[4] < 0.5)))
        return apply(self, operation, picture, layer)

    monkeypatch.setattr(RandAugment, "_applied", watched)
    augmented("rand-m9-p1-inc1", images)
    settings = {"img_mean": (26, 128, 230), "interpolation": Image.Resampling.BICUBIC}
    for row, image in enumerate(images):
        picture = Image.fromarray(image.transpose(1, 2, 0).copy())
        for name, negative in chosen[2 * row : 2 * row + 2]:
            coin = SimpleNamespace(random=lambda negative=negative: 0.9 if negative else 0.1)
            monkeypatch.setattr(timm_ops, "random", coin)
            operation = timm_ops.AugmentOp(name, prob=1.0, magnitude=9, hparams=dict(settings))
            picture = operation(picture)
        assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), ours[row])


def test_magnitudes_scatter_as_specified() -> None:
    draws = np.random.default_rng(0).random((4000, 5))
    normal = timm_ops.AugmentOp("Rotate", magnitude=5, hparams={"magnitude_std": 0.5})
    found = [magnitude(normal, layer) for layer in draws]
    assert stats.kstest(found, stats.norm(5, 0.5).cdf).pvalue > 0.01
    anything = timm_ops.AugmentOp("Rotate", magnitude=8, hparams={"magnitude_std": float("inf")})
    found = [magnitude(anything, layer) for layer in draws]
    assert stats.kstest(found, stats.uniform(0, 8).cdf).pvalue > 0.01
    capped = timm_ops.AugmentOp("Rotate", magnitude=10, hparams={"magnitude_std": 5.0})
    assert max(magnitude(capped, layer) for layer in draws) == 10.0


def test_weighted_choices_come_without_repeats_and_by_their_weights() -> None:
    transform = RandAugment("rand-n2-tweights", COLOUR)
    keys = np.random.default_rng(0).random((4000, len(transform._policy.ops)))
    picks = [transform._chosen(np.empty((2, 5)), row) for row in keys]
    assert all(first != second for first, second in picks)
    share = np.bincount([first for first, _ in picks], minlength=keys.shape[1]) / len(picks)
    np.testing.assert_allclose(share, transform._policy.choice_weights, atol=0.025)


@pytest.mark.parametrize(
    "specification", ["", "original", "rand-m9-banana", "rand-m9.5", "rand-tfour", "rand-x3"]
)
def test_a_specification_that_is_none_is_refused(specification: str) -> None:
    with pytest.raises(ParamsError, match="no specification of RandAugment"):
        RandAugment(specification, COLOUR)


@pytest.mark.parametrize(
    "statistics",
    [PixelStatistics((0.1,) * 4, (0.2,) * 4, 8), PixelStatistics((0.1,), (0.2,), 16)],
)
def test_images_that_pillow_has_no_operations_for_are_refused(statistics: PixelStatistics) -> None:
    with pytest.raises(ParamsError, match="8 bits with 1 or 3 channels"):
        RandAugment(RECIPE, statistics)


# --- mixing -----------------------------------------------------------------------------------


def test_neighbours_are_partners() -> None:
    assert partners(6).tolist() == [1, 0, 3, 2, 5, 4]
    assert partners(5).tolist() == [1, 0, 3, 2, 4]


@given(st.integers(1, 9), st.floats(0, 0.5), st.integers(2, 7), st.data())
def test_soft_targets_sum_to_one(count: int, smoothing: float, classes: int, data: Any) -> None:
    labels = torch.tensor(
        data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    )
    ids = torch.arange(count) + 100
    shares, _ = draw_mixing(0, "test", 3, ids, (0.8, 1.0), (7, 9))
    targets = mix_targets(labels, classes, smoothing, shares)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(count))
    assert (targets >= 0).all()


def test_targets_of_a_pair_are_those_of_timm() -> None:
    labels = torch.tensor([2, 4])
    theirs = timm_mixup.mixup_target(labels, 6, lam=0.3, smoothing=0.1)
    torch.testing.assert_close(mix_targets(labels, 6, 0.1, torch.tensor([0.3, 0.3])), theirs)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0), (0.2, 0.5)])
def test_shares_follow_their_beta_distributions(mixup: float, cutmix: float) -> None:
    ids = torch.arange(6000)
    shares, boxes = draw_mixing(1, "test", 0, ids, (mixup, cutmix), (512, 512))
    assert torch.equal(shares[0::2], shares[1::2]) and torch.equal(boxes[0::2], boxes[1::2])
    cut = (boxes[::2, 1] > boxes[::2, 0]).numpy()
    expected = 0.5 if mixup and cutmix else float(bool(cutmix))
    assert abs(cut.mean() - expected) < 0.03
    mixed = shares[::2].numpy()[~cut]
    if mixup:
        assert stats.kstest(mixed, stats.beta(mixup, mixup).cdf).pvalue > 0.001
    if cutmix:
        areas = ((boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]))[::2].numpy()[cut]
        np.testing.assert_allclose(shares[::2].numpy()[cut], 1 - areas / 512**2, rtol=1e-5)


def test_a_box_is_that_of_timm_for_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    from mae.data.loading.mixing import _boxes

    rng = np.random.default_rng(0)
    for _ in range(50):
        share, row, column = rng.random(3)
        centres = iter([int(row * 24), int(column * 36)])
        monkeypatch.setattr(
            timm_mixup.np.random, "randint", lambda *a, centres=centres, **k: next(centres)
        )
        theirs = timm_mixup.rand_bbox((3, 24, 36), share)
        ours = _boxes(np.array([share]), np.array([row]), np.array([column]), (24, 36))[0]
        assert ours.tolist() == [int(edge) for edge in theirs]


def test_images_are_mixed_with_their_partner_or_cut_from_it() -> None:
    images = torch.rand(5, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([0.25, 0.25, 0.75, 0.75, 0.6])
    boxes = torch.zeros(5, 4, dtype=torch.int64)
    boxes[2:4] = torch.tensor([1, 3, 2, 4])
    mixed = mix_images(images, shares, boxes)
    torch.testing.assert_close(mixed[0], 0.25 * images[0] + 0.75 * images[1])
    torch.testing.assert_close(mixed[1], 0.25 * images[1] + 0.75 * images[0])
    cut = images[2].clone()
    cut[:, 1:3, 2:4] = images[3, :, 1:3, 2:4]
    assert torch.equal(mixed[2], cut)
    torch.testing.assert_close(mixed[4], images[4])  # the last of an odd number is its own partner


@pytest.mark.parametrize("shape", [(24, 24), (5, 40), (1, 1), (2, 3)])
def test_what_is_erased_lies_in_the_image_and_is_as_large_as_asked(
    shape: tuple[int, int],
) -> None:
    ids = torch.arange(2000)
    rows, boxes = draw_erasing(0, "test", 0, ids, 0.25, shape)
    assert len(rows) == len(boxes) and len(rows.unique()) == len(rows)
    if min(shape) > 2:
        assert abs(len(rows) / len(ids) - 0.25) < 0.04
    top, bottom, left, right = boxes.unbind(1)
    assert (top >= 0).all() and (left >= 0).all()
    assert (bottom <= shape[0]).all() and (right <= shape[1]).all()
    if shape == (24, 24):
        share = (bottom - top) * (right - left) / 24**2
        assert share.min() > 0.01 and share.max() < 0.36 and abs(share.mean() - 0.177) < 0.02
    assert len(draw_erasing(0, "test", 0, ids, 0.0, shape)[0]) == 0


def test_erasing_puts_noise_into_the_box_alone() -> None:
    images, noise = torch.zeros(4, 3, 6, 6), torch.full((1, 3, 6, 6), 7.0)
    erased = erase(images, torch.tensor([2]), torch.tensor([[1, 3, 0, 4]]), noise)
    expected = images.clone()
    expected[2, :, 1:3, 0:4] = 7.0
    assert torch.equal(erased, expected) and not images.any()


# --- the loader -------------------------------------------------------------------------------

AUGMENT: dict[str, Any] = {
    "crop_area": (0.6, 1.0), "crop_aspect": (0.75, 1.333), "flip": True,
    "randaugment": RECIPE, "mixup": 0.8, "cutmix": 1.0, "erasing": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    root = tmp_path_factory.mktemp("augment")
    rng = np.random.default_rng(0)
    for split, count in {"train": 50, "val": 1, "test": 1}.items():
        for label in ("a", "b"):
            folder = root / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (20, 28), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    content = read_params(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    content["data"]["images"] = {"source": "folder", "path": str(root / "images")}
    shard_dataset("images", parse_params(content).data, 0, root / "shards")
    return ShardReader(root / "shards", "train")


def make_loader(
    reader: ShardReader, workers: int = 1, rank: int = 0, world_size: int = 1, **changes: Any
) -> AugmentedLoader:
    augment = FinetuneAugmentParams(**(AUGMENT | changes))
    plain = TrainLoader(
        reader, height=16, width=24, batch=48, seed=3, purpose="test", augment=augment,
        workers=workers, cache_mb=4, rank=rank, world_size=world_size,
    )  # fmt: skip
    statistics = reader.info.statistics
    loader = with_augmentations(plain, augment, statistics, seed=3, purpose="test", workers=workers)
    assert isinstance(loader, AugmentedLoader)
    return loader


def equal(first: AugmentedBatch, second: AugmentedBatch) -> bool:
    pairs = zip(first.tensors(), second.tensors(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_batches_do_not_depend_on_threads_or_on_where_one_begins(reader: ShardReader) -> None:
    whole = list(make_loader(reader).batches(0, 5))
    assert len(whole) == 5 and {len(batch) for batch in whole} == {48}
    threaded = list(make_loader(reader, workers=3).batches(0, 5))
    resumed = list(make_loader(reader, workers=2).batches(3, 5))
    assert all(map(equal, whole, threaded)) and all(map(equal, whole[3:], resumed))
    assert not torch.equal(whole[0].shares, whole[2].shares)


def test_processes_mix_as_one_would(reader: ShardReader) -> None:
    whole = next(make_loader(reader).batches(0, 1))
    parts = [next(make_loader(reader, rank=r, world_size=2).batches(0, 1)) for r in (0, 1)]
    for name in ("images", "ids", "shares", "boxes", "erased_boxes"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name)), name
    erased = torch.cat([parts[0].erased, parts[1].erased + 24])
    assert torch.equal(erased, whole.erased)


def test_nothing_asked_for_adds_nothing(reader: ShardReader) -> None:
    augment = FinetuneAugmentParams(
        **(AUGMENT | {"randaugment": None, "mixup": 0.0, "cutmix": 0.0, "erasing": 0.0})
    )
    plain = TrainLoader(
        reader, height=16, width=24, batch=8, seed=3, purpose="test", augment=augment,
        workers=1, cache_mb=4,
    )  # fmt: skip
    kept = with_augmentations(
        plain, augment, reader.info.statistics, seed=3, purpose="test", workers=1
    )
    assert kept is plain


def test_each_is_added_by_itself(reader: ShardReader) -> None:
    nothing = {"randaugment": None, "mixup": 0.0, "cutmix": 0.0, "erasing": 0.0}
    mixed = next(make_loader(reader, **(nothing | {"mixup": 0.8})).batches(0, 1))
    assert (mixed.shares < 1).any() and not mixed.boxes.any() and len(mixed.erased) == 0
    erased = next(make_loader(reader, **(nothing | {"erasing": 1.0})).batches(0, 1))
    assert (erased.shares == 1).all() and len(erased.erased) > 40
    changed = next(make_loader(reader, **(nothing | {"randaugment": RECIPE})).batches(0, 1))
    assert not torch.equal(changed.images, mixed.images)
    assert torch.equal(mixed.images, erased.images)
    assert torch.equal(changed.ids, mixed.ids) and torch.equal(changed.labels, mixed.labels)
