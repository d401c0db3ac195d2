"""What the protocols share in which the encoder itself learns: fine-tuning, partial, adapters.

MAE's recipe (arXiv 2111.06377, table 9): AdamW with layer-wise decay and drop path, label
smoothing, mixup and cutmix, RandAugment, random erasing, and a linear layer that starts almost at
zero. Every arm gets the same labels, order, crops, steps and schedule. Accuracies are those of the
last epoch; none is chosen by looking at test.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mae.data.loading.augment import AugmentedLoader, with_augmentations
from mae.data.loading.loader import EvalLoader, TrainLoader
from mae.evaluation.arms import baselines
from mae.evaluation.classification import ClassificationTask
from mae.evaluation.labelled import EVALUATION_BATCH, LabelledSplit
from mae.evaluation.scores import Scores, measure_scores
from mae.model.artifact import EncoderArtifact, random_encoder
from mae.model.encoder import Encoder
from mae.model.freezing import still_where_frozen
from mae.model.heads import Classifier
from mae.params import OptimParams, Params, Precision
from mae.pixels import PixelStatistics
from mae.training.devices import AUTOCAST_DTYPE, Place
from mae.training.trainer import Trainer, adamw

_PURPOSE = "finetune"  # of draws: partial fine-tuning and adapters see the crops that it sees
_HEAD_STD_PRETRAINED, _HEAD_STD_SCRATCH = 2e-5, 0.02

Adapt = Callable[[Classifier], None]
"""Changes what of a classifier learns, before it learns."""


@dataclass(frozen=True)
class Setting:
    """What all runs of a protocol have in common."""

    params: Params
    train: LabelledSplit
    test: LabelledSplit
    classes: tuple[str, ...]
    place: Place


@dataclass(frozen=True)
class LearningArm:
    """An encoder to learn from. make_encoder: seed -> a fresh one, to be changed at will.

    statistics, resize: how its images are normalised and, in evaluation, resized.
    """

    name: str
    make_encoder: Callable[[int], Encoder]
    statistics: PixelStatistics
    resize: float
    layer_decay: float
    head_std: float


def learning_arms(params: Params, artifact: EncoderArtifact) -> dict[str, LearningArm]:
    """Return the arms by name: pretrained, scratch, then those of evaluate.baselines.

    From scratch there are the two differences of published scratch recipes: no layer decay, and
    an ordinary initial layer (deviation 0.02).
    """
    return {
        "pretrained": learning_arm(params, "pretrained", artifact),
        "scratch": replace(_untrained_arm(params, "scratch", artifact), layer_decay=1.0),
        **_added_arms(params, artifact),
    }


def frozen_start_arms(params: Params, artifact: EncoderArtifact) -> dict[str, LearningArm]:
    """Return the arms of protocols that keep most of the encoder: pretrained, random, and those of
    evaluate.baselines. What is kept of a random encoder is as it was drawn."""
    return {
        "pretrained": learning_arm(params, "pretrained", artifact),
        "random": _untrained_arm(params, "random", artifact),
        **_added_arms(params, artifact),
    }


def _untrained_arm(params: Params, name: str, artifact: EncoderArtifact) -> LearningArm:
    """Return an arm of the artifact's shape that each seed draws anew."""
    architecture = artifact.encoder.architecture
    return replace(
        learning_arm(params, name, artifact),
        make_encoder=lambda seed: random_encoder(architecture, seed),
        head_std=_HEAD_STD_SCRATCH,
    )


def why_no_blocks(artifact: EncoderArtifact) -> str | None:
    """Return a sentence on why an encoder has no transformer blocks to tune, or None."""
    if isinstance(artifact.encoder, Encoder):
        return None
    return "the encoder is convolutional: it has no transformer blocks to tune apart"


def _added_arms(params: Params, artifact: EncoderArtifact) -> dict[str, LearningArm]:
    """Return the arms of evaluate.baselines, by name."""
    others = baselines(params, artifact.statistics)
    return {name: learning_arm(params, name, other) for name, other in others.items()}


def learning_arm(params: Params, name: str, artifact: EncoderArtifact) -> LearningArm:
    """Return an arm that starts with an artifact's weights, under the recipe for such."""
    return LearningArm(
        name=name,
        make_encoder=lambda seed: copy.deepcopy(artifact.encoder),
        statistics=artifact.statistics,
        resize=artifact.resize,
        layer_decay=params.evaluate.finetune.layer_decay,
        head_std=_HEAD_STD_PRETRAINED,
    )


@dataclass(frozen=True)
class Learned:
    """What one run reached. labels: images learned from. parameters: numbers that learned."""

    seed: int
    labels: int
    scores: Scores
    seconds: float
    parameters: int

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "labels": self.labels,
            "seconds": self.seconds,
            **self.scores.to_dict(classes),
        }


def train_and_score(
    setting: Setting,
    arm: LearningArm,
    positions: Tensor,
    optim: OptimParams,
    seed: int,
    *,
    adapt: Adapt | None = None,
    test: LabelledSplit | None = None,
) -> Learned:
    """Learn from the images at `positions` of train, int64 (n,), and measure after the last step.

    The seed decides the initial layer, the order, crops and other augmentation, and the encoder
    where that is random. adapt: see Adapt; None: all learns. test: what to measure on in place of
    the setting's. With several processes all call it, share the work and return the same.
    """
    started = time.monotonic()
    task = make_task(setting, arm, seed, adapt)
    optim = _shareable(optim, len(positions), setting.place)
    trainer = Trainer(
        task,
        train_loader(setting, task.classifier.encoder, positions, optim.batch, seed),
        optim,
        seed=seed,
        place=setting.place,
        runtime=setting.params.runtime,
        make_optimizer=adamw(),
        title=_PURPOSE,
    )
    trainer.run()
    test = test or setting.test
    logits = predict(task, test, arm.resize, setting, trainer.precision)
    return Learned(
        seed=seed,
        labels=len(positions),
        scores=measure_scores(logits, test.labels),
        seconds=time.monotonic() - started,
        parameters=task.learned,
    )


def make_task(
    setting: Setting, arm: LearningArm, seed: int, adapt: Adapt | None = None
) -> ClassificationTask:
    """Return the arm's encoder with a new linear layer, ready to learn."""
    finetune = setting.params.evaluate.finetune
    encoder = arm.make_encoder(seed)
    encoder.set_drop_path(finetune.drop_path)
    classifier = Classifier(
        encoder, len(setting.classes), finetune.feature, init_std=arm.head_std, seed=seed
    )
    if adapt is not None:
        adapt(classifier)
        still_where_frozen(encoder)
    return ClassificationTask(
        classifier, arm.statistics, arm.layer_decay, finetune.label_smoothing, seed
    )


def train_loader(
    setting: Setting, encoder: Encoder, positions: Tensor, batch: int, seed: int
) -> TrainLoader | AugmentedLoader:
    """Return the augmented batches of train that an arm's encoder learns from."""
    augment, runtime = setting.params.evaluate.finetune.augment, setting.params.runtime
    reader = setting.train.reader
    loader = TrainLoader(
        reader,
        height=encoder.architecture.height,
        width=encoder.architecture.width,
        batch=batch,
        seed=seed,
        purpose=_PURPOSE,
        augment=augment,
        workers=runtime.workers,
        cache_mb=runtime.cache_mb,
        positions=positions,
        rank=setting.place.rank,
        world_size=setting.place.world_size,
    )
    return with_augmentations(
        loader,
        augment,
        reader.info.statistics,
        seed=seed,
        purpose=_PURPOSE,
        workers=runtime.workers,
    )


def _shareable(optim: OptimParams, labels: int, place: Place) -> OptimParams:
    """Make one batch of labels fewer than a batch divide by the number of processes."""
    if labels >= optim.batch or labels % place.world_size == 0:
        return optim
    return optim.model_copy(update={"batch": max(1, labels - labels % place.world_size)})


@torch.no_grad()
def predict(
    task: ClassificationTask,
    split: LabelledSplit,
    resize: float,
    setting: Setting,
    precision: Precision,
) -> Tensor:
    """Return logits float32 (N, classes) of every image in order, on the CPU of every process.

    The processes share whole batches, so that each image is seen once, in the same batch whatever
    their number: the logits are equal to the bit.
    """
    place, dtype = setting.place, AUTOCAST_DTYPE[precision]
    batches = split.positions.split(EVALUATION_BATCH)
    mine = place.share(len(batches))
    architecture = task.classifier.encoder.architecture
    loader = EvalLoader(
        split.reader,
        height=architecture.height,
        width=architecture.width,
        resize=resize,
        batch=EVALUATION_BATCH,
        workers=setting.params.runtime.workers,
        cache_mb=setting.params.runtime.cache_mb,
        # What the share repeats to be as long as the others' need not be computed.
        positions=torch.cat([batches[index] for index in mine.unique().tolist()]),
    )
    logits = torch.zeros(len(mine), EVALUATION_BATCH, len(setting.classes))
    for row, batch in zip(logits, loader, strict=False):
        images = task.normalize(batch.to(place.device).images)
        with torch.autocast(place.device.type, dtype, enabled=dtype is not None):
            row[: len(batch)] = task.classifier(images).float().cpu()
    return place.gather(logits, len(batches)).flatten(0, 1)[: len(split)]
