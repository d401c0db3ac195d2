"""Detection and instance segmentation: Mask R-CNN on the encoder, pretrained and from scratch.

Both arms learn from the same scenes in the same order for the same number of steps, and begin
with the same weights outside the encoder. Layer decay is for pretrained layers: from scratch all
learn at the full rate, as in published recipes. AP is COCO's, on the test split after the last
step, in the pixels of the original images.
"""

import copy
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image

from mae.data.dataset import read_dataset_info
from mae.data.loading.scenes import SceneBatch, SceneLoader
from mae.data.reader import ShardReader
from mae.evaluation.arms import words
from mae.evaluation.coco import AveragePrecision, Detection, Scene, average_precision, has_objects
from mae.evaluation.detector import anchor_sides, build_detector
from mae.evaluation.features import check_encoder_fits
from mae.evaluation.outcome import Compared, Outcome
from mae.evaluation.scene_pictures import draw_predictions, write_category_table
from mae.model.artifact import EncoderArtifact, load_encoder, random_encoder
from mae.model.encoder import Encoder
from mae.model.pyramid import pyramid_strides
from mae.params import Params
from mae.pixels import PixelNormalizer, PixelStatistics
from mae.training.devices import Place
from mae.training.groups import layer_decay_groups
from mae.training.task import Task
from mae.training.trainer import Trainer, adamw

LOG = logging.getLogger(__name__)

PROTOCOL = "detection"

_BOXES_FOR_ANCHORS = 5000
_SCENES_DRAWN = 6


class DetectionTask(Task):
    """Scenes -> the sum of Mask R-CNN's five losses; all of the detector learns."""

    def __init__(
        self,
        encoder: Encoder,
        detector: MaskRCNN,
        statistics: PixelStatistics,
        layer_decay: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.detector = detector
        self.normalize = PixelNormalizer(statistics)
        self.layer_decay = layer_decay

    def forward(self, batch: SceneBatch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        targets = [_learnable(target) for target in batch.targets]
        losses = self.detector(list(self.normalize(batch.images)), targets)
        return torch.stack([loss.float() for loss in losses.values()]).sum(), losses

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return layer_decay_groups(self, self.encoder, weight_decay, self.layer_decay)

    @torch.no_grad()
    def detect(self, batch: SceneBatch) -> list[dict[str, Tensor]]:
        """Return boxes (M, 4), labels (M,), scores (M,) and masks (M, 1, 28, 28) of each scene."""
        return self.detector(list(self.normalize(batch.images)))


def _learnable(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out crowds, which are no single object, and boxes that resizing made empty."""
    boxes = target["boxes"]
    keep = (target["iscrowd"] == 0) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return {name: target[name][keep] for name in ("boxes", "labels", "masks")}


# --- the protocol -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """What one trained detector reached, and its detections in each test scene."""

    box: AveragePrecision
    mask: AveragePrecision
    detections: list[list[Detection]]


class Comparison:
    """Everything that both arms have in common."""

    def __init__(
        self, params: Params, artifact: EncoderArtifact, shards: Path, device: torch.device
    ) -> None:
        self.params = params
        self.optim = params.evaluate.detection
        self.artifact = artifact
        self.device = device
        self.train, self.test = ShardReader(shards, "train"), ShardReader(shards, "test")
        self.categories = self.train.info.categories
        self.scenes = true_scenes(self.test)
        self.boxes = some_boxes(self._loader(self.train, train=True))

    @property
    def why_not_measurable(self) -> str | None:
        if len(self.boxes) == 0:
            return "no object is annotated in the scenes of train: there is nothing to learn"
        if not has_objects(self.scenes):
            return "no object is annotated in the scenes of test: there is nothing to measure"
        return None

    @property
    def anchor_sides(self) -> tuple[float, ...]:
        patch = self.artifact.encoder.architecture.patch
        return anchor_sides(self.boxes, len(pyramid_strides(patch)))

    def pretrained(self) -> Arm:
        return self._train_and_test(copy.deepcopy(self.artifact.encoder), self.optim.layer_decay)

    def scratch(self) -> Arm:
        architecture = self.artifact.encoder.architecture
        return self._train_and_test(random_encoder(architecture, self.params.seed), 1.0)

    def _train_and_test(self, encoder: Encoder, layer_decay: float) -> Arm:
        encoder.set_drop_path(self.optim.drop_path)
        detector = build_detector(
            encoder, len(self.categories), self.anchor_sides, self.params.seed
        )
        task = DetectionTask(encoder, detector, self.artifact.statistics, layer_decay)
        Trainer(
            task,
            self._loader(self.train, train=True),
            self.optim,
            seed=self.params.seed,
            place=Place(self.device),
            runtime=self.params.runtime,
            make_optimizer=adamw(),
            title=PROTOCOL,
        ).run()
        found = detections_of(task, self._loader(self.test, train=False), self.test, self.device)
        return Arm(
            box=average_precision(self.scenes, found, "bbox"),
            mask=average_precision(self.scenes, found, "segm"),
            detections=found,
        )

    def _loader(self, reader: ShardReader, train: bool) -> SceneLoader:
        return SceneLoader(
            reader,
            height=self.optim.height,
            width=self.optim.width,
            batch=self.optim.batch,
            seed=self.params.seed,
            purpose=PROTOCOL,
            flip=self.optim.flip and train,
            workers=self.params.runtime.workers,
            train=train,
        )


def run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome:
    """Train both arms on the scenes in `shards`, in one process, and measure them.

    Skipped where there are no scenes, or none with an object. Raises DataError for an encoder
    that does not fit the scenes.
    """
    info = read_dataset_info(shards)
    if info.skipped or not info.categories:
        return Outcome(PROTOCOL, skipped=info.skipped or f"nothing is annotated in {shards}")
    artifact = load_encoder(pretrained)
    check_encoder_fits(artifact, info)
    comparison = Comparison(params, artifact, shards, place.device)
    if comparison.why_not_measurable:
        return Outcome(PROTOCOL, skipped=comparison.why_not_measurable)

    LOG.info("detection: %s", comparison.optim.describe(len(comparison.train)))
    arms = {"pretrained": comparison.pretrained(), "scratch": comparison.scratch()}
    for name, arm in arms.items():
        LOG.info("detection, %s: APbox %.3f, APmask %.3f", name, arm.box.ap, arm.mask.ap)
    table = category_table(arms)
    write_category_table(pictures / "categories.csv", table)
    shown = range(min(_SCENES_DRAWN, len(comparison.test)))
    draw_predictions(
        pictures / "predictions.png",
        [comparison.test.pixels(position) for position in shown],
        [comparison.scenes[position].annotations for position in shown],
        [arms["pretrained"].detections[position] for position in shown],
    )
    return Outcome(
        PROTOCOL,
        numbers=numbers_of(arms),
        comparisons=comparisons_of(arms, len(comparison.test)),
        detail={
            **{
                name: {"box": asdict(arm.box), "mask": asdict(arm.mask)}
                for name, arm in arms.items()
            },
            "categories": table,
            "images": {"train": len(comparison.train), "test": len(comparison.test)},
            "schedule": comparison.optim.describe(len(comparison.train)),
            "anchor_sides": list(comparison.anchor_sides),
            "pictures": ["predictions.png", "categories.csv"],
        },
    )


def numbers_of(arms: dict[str, Arm]) -> dict[str, float]:
    """Return AP and AP at IoU .50 of boxes and masks; "_scratch" marks the second arm."""
    return {
        f"AP{kind}{iou}{suffix}": value
        for suffix, arm in (("", arms["pretrained"]), ("_scratch", arms["scratch"]))
        for kind, found in (("box", arm.box), ("mask", arm.mask))
        for iou, value in (("", found.ap), ("_50", found.ap_50))
    }


def comparisons_of(arms: dict[str, Arm], images: int) -> tuple[Compared, ...]:
    """Return AP of boxes and of masks, measured on so many images, of both arms."""
    return tuple(
        Compared(
            task=task,
            metric=metric,
            pretrained=(getattr(arms["pretrained"], kind).ap,),
            baseline=words("scratch"),
            values=(getattr(arms["scratch"], kind).ap,),
            paired=True,
            images=images,
        )
        for task, metric, kind in (
            ("Detection", "APbox", "box"),
            ("Instance segmentation", "APmask", "mask"),
        )
    )


def category_table(arms: dict[str, Arm]) -> list[dict[str, Any]]:
    """Return a row of APs for each category that occurs in the test scenes."""
    return [
        {
            "category": category,
            "APbox": arms["pretrained"].box.per_category[category],
            "APmask": arms["pretrained"].mask.per_category[category],
            "APbox_scratch": arms["scratch"].box.per_category[category],
            "APmask_scratch": arms["scratch"].mask.per_category[category],
        }
        for category in arms["pretrained"].box.per_category
    ]


# --- scenes in and out ------------------------------------------------------------------------


def true_scenes(reader: ShardReader) -> list[Scene]:
    """Return what is annotated in each image of a split, in its order."""
    return [
        Scene(int(reader.heights[position]), int(reader.widths[position]), annotations)
        for position, annotations in enumerate(map(reader.annotations, range(len(reader))))
    ]


def some_boxes(loader: SceneLoader) -> Tensor:
    """Return the boxes (M, 4) of the first epoch's scenes, up to a few thousand, as resized."""
    found: list[Tensor] = []
    batches = loader.batches(0, loader.steps_per_epoch)
    for batch in batches:
        found += [_learnable(target)["boxes"] for target in batch.targets]
        if sum(map(len, found)) >= _BOXES_FOR_ANCHORS:
            break
    batches.close()
    return torch.cat(found)


def detections_of(
    task: DetectionTask, batches: Iterable[SceneBatch], reader: ShardReader, device: torch.device
) -> list[list[Detection]]:
    """Return the detections in each image of a split, in its order and in its own pixels."""
    position_of = {image_id: position for position, image_id in enumerate(reader.ids.tolist())}
    found: list[list[Detection]] = [[] for _ in range(len(reader))]
    for batch in batches:
        results = task.detect(batch.to(device))
        for image_id, scale, result in zip(batch.ids.tolist(), batch.scales, results, strict=True):
            position = position_of[image_id]
            found[position] = in_original_pixels(
                {name: value.cpu() for name, value in result.items()},
                scale,
                (int(reader.heights[position]), int(reader.widths[position])),
                reader.info.categories,
            )
    return found


def in_original_pixels(
    result: dict[str, Tensor],
    scale: Tensor,
    shape: tuple[int, int],
    categories: tuple[str, ...],
) -> list[Detection]:
    """Map a scene's detections back to the image (height, width) it was resized from by `scale`.

    Boxes are cut at the image's borders, and one that lay in the padding is left out.
    """
    from pycocotools import mask as coco_mask

    height, width = shape
    boxes = result["boxes"].float() / scale
    limits = torch.tensor([width, height, width, height])
    inside = torch.minimum(boxes.clamp(min=0), limits)
    found = []
    for row, (x0, y0, x1, y1) in enumerate(inside.tolist()):
        if x1 <= x0 or y1 <= y0:
            continue
        # One at a time: a hundred masks of a large image would fill gigabytes.
        one = slice(row, row + 1)
        pasted = paste_masks_in_image(result["masks"][one].float(), boxes[one], shape)[0, 0] > 0.5
        lengths = coco_mask.encode(np.asfortranarray(pasted.numpy().astype(np.uint8)))
        found.append(
            {
                "category": categories[int(result["labels"][row]) - 1],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "segmentation": {**lengths, "counts": lengths["counts"].decode()},
                "score": float(result["scores"][row]),
            }
        )
    return found
