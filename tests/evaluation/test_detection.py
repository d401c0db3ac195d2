"""The detection protocol: what it learns, that it repeats, and that boxes find their way back."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae.data.loading.scenes import SceneLoader
from mae.data.reader import ShardReader
from mae.data.sharding.run import shard_dataset
from mae.errors import DataError
from mae.evaluation.coco import average_precision
from mae.evaluation.detection import (
    Comparison,
    DetectionTask,
    detections_of,
    in_original_pixels,
    run,
    true_scenes,
)
from mae.evaluation.detector import anchor_sides, build_detector
from mae.model.artifact import load_encoder
from mae.params import Params, parse_params
from mae.training.devices import Place
from mae.training.trainer import Trainer

CPU = torch.device("cpu")
HEIGHT, WIDTH = 32, 48
COUNTS = {"train": 4, "val": 2, "test": 3}
BRIEF = {"height": HEIGHT, "width": WIDTH, "epochs": 1, "batch": 2, "precision": "fp32"}


def rectangle(image: np.ndarray, row: int, column: int, category: int) -> dict[str, Any]:
    """Paint a bright (1) or dark (2) rectangle and return it as an annotation."""
    height, width = (16, 12) if category == 1 else (12, 18)
    image[row : row + height, column : column + width] = 250 if category == 1 else 10
    x0, y0, x1, y1 = column, row, column + width, row + height
    return {
        "category_id": category,
        "bbox": [x0, y0, width, height],
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        "area": width * height,
        "iscrowd": 0,
    }


def write_scenes(root: Path, enlarged: int = 1) -> None:
    """A COCO folder of grey scenes with one or two rectangles; the last of train has none."""
    rng = np.random.default_rng(1)
    for split, count in COUNTS.items():
        images, annotations = [], []
        folder = root / split
        folder.mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        for number in range(count):
            pixels = rng.integers(90, 120, (HEIGHT, WIDTH)).astype(np.uint8)
            found = []
            if not (split == "train" and number == count - 1):
                found.append(rectangle(pixels, int(rng.integers(16)), int(rng.integers(10)), 1))
                if number % 2:
                    found.append(rectangle(pixels, int(rng.integers(20)), 26, 2))
            name = f"{number}.png"
            picture = Image.fromarray(pixels).resize((WIDTH * enlarged, HEIGHT * enlarged), 0)
            picture.save(folder / name)
            images.append(
                {
                    "id": number,
                    "file_name": name,
                    "height": HEIGHT * enlarged,
                    "width": WIDTH * enlarged,
                }
            )
            for one in found:
                one["bbox"] = [enlarged * value for value in one["bbox"]]
                one["segmentation"] = [[enlarged * v for v in one["segmentation"][0]]]
                one["area"] *= enlarged**2
                annotations.append({**one, "id": len(annotations) + 1, "image_id": number})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "bright"}, {"id": 2, "name": "dark"}],
        }
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


def shard(params: Params, root: Path) -> Path:
    content = params.model_dump(mode="json", by_alias=True)
    content["data"]["scenes"] = {"source": "coco", "path": str(root / "coco")}
    shard_dataset("scenes", parse_params(content).data, 0, root / "shards")
    return root / "shards"


@pytest.fixture(scope="module")
def params(make_params: Callable[..., Params]) -> Params:
    return make_params(detection=BRIEF)


@pytest.fixture(scope="module")
def scenes(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "coco")
    return shard(params, root)


@pytest.fixture(scope="module")
def large_scenes(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    write_scenes(root / "coco", enlarged=4)
    return shard(params, root)


def make_task(
    encoder: Path, scenes: Path, layer_decay: float = 0.8, seed: int = 0
) -> DetectionTask:
    artifact = load_encoder(encoder)
    categories = len(ShardReader(scenes, "train").info.categories)
    detector = build_detector(artifact.encoder, categories, (10.0, 12.0, 14.0, 16.0), seed)
    return DetectionTask(artifact.encoder, detector, artifact.statistics, layer_decay)


def loader_of(scenes: Path, split: str, **changes: Any) -> SceneLoader:
    settings: dict[str, Any] = {
        "height": HEIGHT, "width": WIDTH, "batch": 4, "seed": 0, "purpose": "detection",
        "flip": False, "workers": 1, "train": split == "train",
    }  # fmt: skip
    return SceneLoader(ShardReader(scenes, split), **(settings | changes))


def train(task: DetectionTask, scenes: Path, params: Params, epochs: int, blr: float) -> float:
    """Train on the four scenes and return the loss on them afterwards."""
    changes = {"epochs": epochs, "batch": 4, "blr": blr, "warmup_epochs": 2}
    optim = params.evaluate.detection.model_copy(update=changes)
    Trainer(
        task,
        loader_of(scenes, "train"),
        optim,
        seed=0,
        place=Place(CPU),
        runtime=params.runtime,
        title="detection",
    ).run()
    return loss_of(task, scenes)


@torch.no_grad()
def loss_of(task: DetectionTask, scenes: Path) -> float:
    torch.manual_seed(0)
    task.train()
    loss, _ = task(next(iter(loader_of(scenes, "train").batches(0, 1))), 0)
    return float(loss)


def test_overfits_four_scenes(params: Params, scenes: Path, tiny_encoder: Path) -> None:
    task = make_task(tiny_encoder, scenes)
    before = loss_of(task, scenes)
    after = train(task, scenes, params, epochs=40, blr=0.3)
    assert after < before / 3
    reader = ShardReader(scenes, "train")
    batches = loader_of(scenes, "train", train=False)
    found = detections_of(task.eval(), batches, reader, CPU)
    assert average_precision(true_scenes(reader), found, "bbox").ap_50 > 0.7


def test_training_repeats_to_the_bit(params: Params, scenes: Path, tiny_encoder: Path) -> None:
    weights = []
    for _ in range(2):
        torch.rand(3)  # whatever state the global generator is in
        task = make_task(tiny_encoder, scenes)
        train(task, scenes, params, epochs=2, blr=0.05)
        weights.append(task.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_losses_are_the_five_of_mask_rcnn_and_finite_in_bf16(
    scenes: Path, tiny_encoder: Path
) -> None:
    task = make_task(tiny_encoder, scenes).train()
    batch = next(iter(loader_of(scenes, "train").batches(0, 1)))
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, parts = task(batch, 0)
        assert loss.dtype == torch.float32 and loss.isfinite()
        assert float(loss.detach()) == pytest.approx(sum(float(p.detach()) for p in parts.values()))
        assert len(parts) == 5


def test_scenes_without_objects_and_crowds_are_learned_from_as_background(
    scenes: Path, tiny_encoder: Path
) -> None:
    task = make_task(tiny_encoder, scenes).train()
    batch = next(iter(loader_of(scenes, "train").batches(0, 1)))
    for target in batch.targets:
        target["iscrowd"].fill_(1)
    loss, parts = task(batch, 0)
    loss.backward()
    assert loss.isfinite()
    assert float(parts["loss_mask"].detach()) == 0


def test_boxes_that_resizing_emptied_do_not_stop_training(scenes: Path, tiny_encoder: Path) -> None:
    task = make_task(tiny_encoder, scenes).train()
    batch = next(iter(loader_of(scenes, "train").batches(0, 1)))
    for target in batch.targets:
        target["boxes"][:1, 2] = target["boxes"][:1, 0]
    assert task(batch, 0)[0].isfinite()


def test_layer_decay_reaches_the_encoder_alone(scenes: Path, tiny_encoder: Path) -> None:
    task = make_task(tiny_encoder, scenes, layer_decay=0.5)
    scales = {
        id(parameter): group["lr_scale"]
        for group in task.parameter_groups(0.05)
        for parameter in group["params"]
    }
    assert len(scales) == len(list(task.parameters()))
    assert scales[id(task.encoder.patch_embed.weight)] == 0.5**3
    assert scales[id(next(task.encoder.blocks[1].parameters()))] == 0.5
    assert {scales[id(p)] for p in task.detector.roi_heads.parameters()} == {1.0}
    assert {scales[id(p)] for p in task.detector.backbone.pyramid.parameters()} == {1.0}


def perfect_result(target: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a detector that knows the truth returns: all objects here are full rectangles."""
    count = len(target["boxes"])
    return {
        "boxes": target["boxes"],
        "labels": target["labels"],
        "scores": torch.full((count,), 0.9),
        "masks": torch.ones(count, 1, 28, 28),
    }


@pytest.mark.parametrize(("height", "width"), [(32, 48), (64, 48), (48, 96)])
def test_a_perfect_detector_reaches_one_in_original_pixels(
    large_scenes: Path, tiny_encoder: Path, height: int, width: int
) -> None:
    """Images of 128 x 192 are shown at a quarter or less, with padding on either side."""
    task = make_task(tiny_encoder, large_scenes)
    task.detect = lambda batch: [perfect_result(t) for t in batch.targets]  # type: ignore
    reader = ShardReader(large_scenes, "test")
    batches = loader_of(large_scenes, "test", height=height, width=width, batch=2)
    found = detections_of(task, batches, reader, CPU)
    truth = true_scenes(reader)
    assert average_precision(truth, found, "bbox").ap == pytest.approx(1)
    assert average_precision(truth, found, "segm").ap > 0.95


def test_detections_are_cut_at_the_border_and_those_in_the_padding_left_out() -> None:
    result = {
        "boxes": torch.tensor([[4.0, 4, 12, 12], [40, 2, 47, 9], [20, 10, 40, 30]]),
        "labels": torch.tensor([1, 2, 2]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
        "masks": torch.ones(3, 1, 28, 28),
    }
    found = in_original_pixels(result, torch.full((4,), 0.5), (64, 64), ("a", "b"))
    assert [one["category"] for one in found] == ["a", "b"]
    assert [one["bbox"] for one in found] == [[8, 8, 16, 16], [40, 20, 24, 40]]
    assert [one["segmentation"]["size"] for one in found] == [[64, 64], [64, 64]]


def test_detector_is_a_function_of_the_seed(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder).encoder
    given = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.random.get_rng_state()
    first, same, other = (
        build_detector(encoder, 2, (10.0, 12.0, 14.0, 16.0), seed).state_dict()
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert all(torch.equal(first[f"backbone.encoder.{n}"], given[n]) for n in given)


def test_any_height_and_width_are_padded_to_whole_patches(scenes: Path, tiny_encoder: Path) -> None:
    task = make_task(tiny_encoder, scenes).eval()
    results = task.detector([torch.randn(1, 27, 43)])
    boxes = results[0]["boxes"]
    assert (boxes[:, 0::2] <= 43).all() and (boxes[:, 1::2] <= 27).all()


def test_anchors_sit_on_the_middle_of_their_cells(scenes: Path, tiny_encoder: Path) -> None:
    task = make_task(tiny_encoder, scenes).eval()
    images, _ = task.detector.transform([torch.randn(1, 32, 48)])
    levels = list(task.detector.backbone(images.tensors).values())
    anchors = task.detector.rpn.anchor_generator(images, levels)[0]
    assert len(anchors) == 3 * sum(level.shape[2] * level.shape[3] for level in levels)
    second = anchors[3:6]  # the finest level (stride 2), first row, second column
    middle = (second[:, :2] + second[:, 2:]) / 2
    assert torch.allclose(middle, torch.tensor([3.0, 1.0]), atol=1e-5)
    sides = second[:, 2:] - second[:, :2]
    assert sides.prod(dim=1).tolist() == pytest.approx([100] * 3)
    assert (sides[:, 1] / sides[:, 0]).tolist() == pytest.approx([0.5, 1, 2])


def test_anchor_sides_are_quantiles_of_the_boxes() -> None:
    sides = torch.arange(1, 102, dtype=torch.float32)
    boxes = torch.stack([sides, sides, sides + sides / 2, sides + sides * 2], dim=1)
    assert anchor_sides(boxes, 2) == pytest.approx((26, 76))


def test_protocol_end_to_end(
    params: Params, scenes: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    outcome = run(params, scenes, tiny_encoder, Place(CPU), pictures)
    names = {f"AP{kind}{iou}" for kind in ("box", "mask") for iou in ("", "_50")}
    assert set(outcome.numbers) == names | {f"{name}_scratch" for name in names}
    assert all(0 <= outcome.numbers[name] <= 1 for name in names)
    assert outcome.skipped is None
    assert {row["category"] for row in outcome.detail["categories"]} == {"bright", "dark"}
    json.dumps(outcome.detail, allow_nan=False)
    box, mask = outcome.comparisons
    assert (box.task, box.metric, box.images) == ("Detection", "APbox", 3)
    assert box.pretrained == (outcome.numbers["APbox"],)
    assert mask.values == (outcome.numbers["APmask_scratch"],)
    assert mask.baseline == "from scratch" and not mask.deciding
    picture = Image.open(io.BytesIO((tmp_path / "pictures" / "predictions.png").read_bytes()))
    assert min(picture.size) > 200
    assert (tmp_path / "pictures" / "categories.csv").read_text().startswith("category,APbox,")


def test_both_arms_differ_in_the_encoder_alone(
    params: Params, scenes: Path, tiny_encoder: Path
) -> None:
    comparison = Comparison(params, load_encoder(tiny_encoder), scenes, CPU)
    seen: list[dict[str, torch.Tensor]] = []
    comparison._train_and_test = lambda encoder, decay: seen.append(encoder.state_dict())  # type: ignore
    comparison.pretrained()
    comparison.scratch()
    assert torch.equal(seen[0]["cls_token"], comparison.artifact.encoder.cls_token)
    assert not torch.equal(seen[0]["cls_token"], seen[1]["cls_token"])


def test_no_scenes_is_skipped(
    make_params: Callable[..., Params], tiny_encoder: Path, tmp_path: Path
) -> None:
    content = make_params().model_dump(mode="json", by_alias=True)
    content["data"]["scenes"] = {"source": "none", "path": None}
    params = parse_params(content)
    shard_dataset("scenes", params.data, 0, tmp_path / "shards")
    outcome = run(params, tmp_path / "shards", tiny_encoder, Place(CPU), tmp_path)
    assert outcome.skipped and not outcome.numbers


def test_scenes_without_annotations_are_skipped(
    params: Params, tiny_encoder: Path, tmp_path: Path
) -> None:
    write_scenes(tmp_path / "coco")
    for path in (tmp_path / "coco" / "annotations").iterdir():
        path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    shards = shard(params, tmp_path)
    outcome = run(params, shards, tiny_encoder, Place(CPU), tmp_path)
    assert outcome.skipped and "no object is annotated" in outcome.skipped


def test_encoder_of_other_channels_is_an_error(
    params: Params, scenes: Path, make_encoder: Callable[[int, int], Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="channels"):
        run(params, scenes, make_encoder(3, 8), Place(CPU), tmp_path)
