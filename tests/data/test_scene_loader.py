"""Boxes and masks follow their image through resizing, padding and flips."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mae.data.annotations import draw_mask
from mae.data.digits import SCENE_HEIGHT, SCENE_WIDTH
from mae.data.loading.batch import prefetch
from mae.data.loading.resample import resample_one
from mae.data.loading.scenes import SceneBatch, SceneLoader, fitting_shape
from mae.data.reader import ShardReader
from mae.data.sharding.run import shard_dataset
from tests.data.zoo import MakeParams


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory, make_params: MakeParams) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    shard_dataset("scenes", make_params(scenes={"source": "digits"}), 0, folder)
    return folder


def scene_loader(folder: Path, split: str = "val", **changes: Any) -> SceneLoader:
    values = {
        "height": SCENE_HEIGHT,
        "width": SCENE_WIDTH,
        "batch": 8,
        "seed": 0,
        "purpose": "test",
        "flip": True,
        "workers": 2,
        "train": True,
        **changes,
    }
    return SceneLoader(ShardReader(folder, split), **values)


def same(a: list[SceneBatch], b: list[SceneBatch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images)
        and torch.equal(x.ids, y.ids)
        and all(
            torch.equal(s[name], t[name])
            for s, t in zip(x.targets, y.targets, strict=True)
            for name in s
        )
        for x, y in zip(a, b, strict=True)
    )


def extent(mask: torch.Tensor) -> torch.Tensor:
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def test_contract_of_a_scene_batch(scenes: Path) -> None:
    (batch,) = scene_loader(scenes).batches(0, 1)
    assert batch.images.shape == (8, 1, SCENE_HEIGHT, SCENE_WIDTH)
    assert batch.images.dtype == torch.uint8
    assert len(batch) == len(batch.targets) == len(batch.to("cpu")) == 8
    for target in batch.targets:
        found = len(target["boxes"])
        assert target["boxes"].shape == (found, 4)
        assert target["boxes"].dtype == torch.float32
        assert target["labels"].dtype == torch.int64
        assert target["labels"].min() >= 1
        assert target["labels"].max() <= 10
        assert target["masks"].shape == (found, SCENE_HEIGHT, SCENE_WIDTH)
        assert target["masks"].dtype == torch.uint8
        assert target["iscrowd"].tolist() == [0] * found
    assert [len(part) for part in batch.split(2)] == [4, 4]


def test_at_their_own_shape_scenes_come_as_they_were_marked(scenes: Path) -> None:
    reader = ShardReader(scenes, "val")
    loader = scene_loader(scenes, train=False)
    position = 0
    for batch in loader:
        for image, target in zip(batch.images, batch.targets, strict=True):
            assert np.array_equal(image.permute(1, 2, 0), reader.pixels(position))
            marks = reader.annotations(position)
            names = [reader.info.categories[label - 1] for label in target["labels"].tolist()]
            assert names == [mark["category"] for mark in marks]
            drawn = np.stack([draw_mask(mark, SCENE_HEIGHT, SCENE_WIDTH) for mark in marks])
            assert np.array_equal(target["masks"], drawn)
            position += 1
    assert position == len(reader) == loader.images


@pytest.mark.parametrize(
    ("height", "width"), [(SCENE_HEIGHT, SCENE_WIDTH), (128, 128), (50, 200), (37, 45)]
)
def test_boxes_and_masks_agree_however_scenes_are_resized(
    scenes: Path, height: int, width: int
) -> None:
    for batch in scene_loader(scenes, height=height, width=width).batches(0, 3):
        for image, target, shape in zip(batch.images, batch.targets, batch.shapes, strict=True):
            h, w = shape.tolist()
            assert (h, w) == fitting_shape((SCENE_HEIGHT, SCENE_WIDTH), (height, width))
            assert not image[:, h:].any()
            assert not image[:, :, w:].any()
            assert not target["masks"][:, h:].any()
            assert not target["masks"][:, :, w:].any()
            for box, mask in zip(target["boxes"], target["masks"], strict=True):
                assert (extent(mask) - box).abs().max() <= 1.5


def test_flips_mirror_image_boxes_and_masks_together(scenes: Path) -> None:
    plain = {}
    for batch in scene_loader(scenes, width=128, train=False):
        for row, name in enumerate(batch.ids.tolist()):
            plain[name] = (batch.images[row], batch.targets[row])
    flipped = 0
    loader = scene_loader(scenes, width=128)
    for batch in loader.batches(0, loader.steps_per_epoch):
        for row, name in enumerate(batch.ids.tolist()):
            image, target = batch.images[row], batch.targets[row]
            before, marked = plain[name]
            if torch.equal(image, before):
                continue
            flipped += 1
            assert torch.equal(image[..., :SCENE_WIDTH].flip(-1), before[..., :SCENE_WIDTH])
            assert torch.equal(
                target["masks"][..., :SCENE_WIDTH].flip(-1), marked["masks"][..., :SCENE_WIDTH]
            )
            x0, y0, x1, y1 = marked["boxes"].unbind(1)
            mirrored = torch.stack([SCENE_WIDTH - x1, y0, SCENE_WIDTH - x0, y1], dim=1)
            assert torch.equal(target["boxes"], mirrored)
    share = flipped / (loader.steps_per_epoch * 8)
    assert 0.25 < share < 0.75


def test_boxes_over_scales_are_the_originals(scenes: Path) -> None:
    reader = ShardReader(scenes, "val")
    (first, *_) = scene_loader(scenes, height=45, width=77, train=False)
    for row in range(len(first)):
        original = first.targets[row]["boxes"] / first.scales[row]
        x, y, w, h = torch.tensor([mark["bbox"] for mark in reader.annotations(row)]).T
        assert torch.allclose(original, torch.stack([x, y, x + w, y + h], dim=1), atol=1e-3)


def test_batches_are_pure_functions_of_the_step(scenes: Path) -> None:
    expected = list(scene_loader(scenes).batches(0, 12))
    assert same(list(scene_loader(scenes, workers=4).batches(5, 12)), expected[5:])
    ranks = [list(scene_loader(scenes, rank=r, world_size=2).batches(0, 4)) for r in range(2)]
    for step in range(4):
        together = torch.cat([ranks[0][step].images, ranks[1][step].images])
        assert torch.equal(together, expected[step].images)


def test_evaluation_never_flips_and_ends_ragged(scenes: Path) -> None:
    loader = scene_loader(scenes, batch=9, train=False)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert torch.cat([b.ids for b in batches]).tolist() == ShardReader(scenes, "val").ids.tolist()
    assert same(list(loader), batches)


def test_real_scenes_with_crowds_and_polygons(
    tmp_path: Path, make_params: MakeParams, real_data: Path
) -> None:
    params = make_params(scenes=real_data / "coco-small", channels=3)
    info = shard_dataset("scenes", params, 0, tmp_path / "coco")
    assert info.quarantined == 0
    loader = scene_loader(tmp_path / "coco", "test", height=160, width=160, train=False)
    crowds = 0
    for batch in loader:
        for target in batch.targets:
            crowds += int(target["iscrowd"].sum())
            boxes = target["boxes"]
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert target["masks"].shape == (len(boxes), 160, 160)
    assert crowds == 6


def test_waiting_is_counted_and_closing_leaves_no_thread(scenes: Path) -> None:
    before = threading.active_count()
    loader = scene_loader(scenes)
    batches = loader.batches(0, 10**6)
    next(batches)
    assert loader.wait_seconds > 0
    batches.close()
    assert threading.active_count() == before


def test_a_large_photo_shrinks_to_the_same_scene(
    tmp_path: Path, make_params: MakeParams, real_data: Path
) -> None:
    """The real scenes are JPEGs several times as large as what is asked for here."""
    params = make_params(scenes=real_data / "coco-small", channels=3)
    shard_dataset("scenes", params, 0, tmp_path / "coco")
    reader = ShardReader(tmp_path / "coco", "test")
    frame = {"height": 96, "width": 112, "train": False}
    reduced = 0
    position = 0
    for batch in scene_loader(tmp_path / "coco", "test", **frame):
        for image, (height, width) in zip(batch.images, batch.shapes.tolist(), strict=True):
            pixels = reader.pixels(position)
            expected = resample_one(pixels, (0, 0, *pixels.shape[:2]), height, width)
            error = ((image[:, :height, :width].double() - torch.tensor(expected)) ** 2).mean()
            reduced += bool(error)
            assert 10 * torch.log10(255**2 / error) > 35
            position += 1
    assert position == len(reader)
    assert reduced > 0


def test_a_scene_batch_moves_as_one(scenes: Path) -> None:
    loader = scene_loader(scenes)
    expected = list(loader.batches(0, 3))
    assert same(list(prefetch(loader.batches(0, 3), "cpu")), expected)
    assert len(expected[0].tensors()) == 5 + 4 * len(expected[0])
