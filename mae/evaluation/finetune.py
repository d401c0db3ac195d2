"""End-to-end fine-tuning at several label budgets, beside the same from scratch.

MAE's recipe (arXiv 2111.06377, table 9): AdamW with layer-wise decay and drop path, label
smoothing, a linear layer on the mean of the patch tokens that starts almost at zero. From
scratch gets the same labels, order, crops, steps and schedule, with the two differences of
published scratch recipes: no layer decay, and an ordinary initial layer (deviation 0.02).
Accuracies are those of the last epoch; none is chosen by looking at test.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mae.data.dataset import read_dataset_info
from mae.data.loading.batch import Batch
from mae.data.loading.loader import EvalLoader, TrainLoader
from mae.evaluation.accuracy import Accuracy, measure_accuracy
from mae.evaluation.features import check_encoder_fits
from mae.evaluation.labelled import (
    LabelledSplit,
    draw_labels,
    train_and_test,
    why_not_classifiable,
)
from mae.evaluation.outcome import Outcome, mean_and_std
from mae.model.artifact import EncoderArtifact, load_encoder, random_encoder
from mae.model.heads import Classifier
from mae.params import LabelBudget, Params, Precision
from mae.pixels import PixelNormalizer, PixelStatistics
from mae.training.devices import AUTOCAST_DTYPE, Place
from mae.training.groups import layer_decay_groups
from mae.training.task import Task
from mae.training.trainer import Trainer, adamw

LOG = logging.getLogger(__name__)

PROTOCOL = "finetune"

_HEAD_STD_PRETRAINED, _HEAD_STD_SCRATCH = 2e-5, 0.02


class FinetuneTask(Task):
    """Labelled batch -> cross entropy with smoothed labels; all of the classifier learns."""

    def __init__(
        self,
        classifier: Classifier,
        statistics: PixelStatistics,
        layer_decay: float,
        label_smoothing: float,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.normalize = PixelNormalizer(statistics)
        self.layer_decay = layer_decay
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.classifier(self.normalize(batch.images)).float()
        loss = nn.functional.cross_entropy(
            logits, batch.labels, label_smoothing=self.label_smoothing
        )
        return loss, {}

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return layer_decay_groups(self, self.classifier.encoder, weight_decay, self.layer_decay)

    @torch.no_grad()
    def predict(self, batches: EvalLoader, device: torch.device, precision: Precision) -> Tensor:
        """Return the predicted labels, int64 (N,), of every image in order."""
        dtype = AUTOCAST_DTYPE[precision]
        predictions = []
        for batch in batches:
            images = self.normalize(batch.to(device).images)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                predictions.append(self.classifier(images).argmax(dim=1).cpu())
        return torch.cat(predictions)


@dataclass(frozen=True)
class Pair:
    """Both arms of one seed: the same labels with and without pretraining."""

    seed: int
    labels: int
    pretrained: Accuracy
    scratch: Accuracy


class Comparison:
    """Everything that the runs of the protocol have in common."""

    def __init__(
        self,
        params: Params,
        artifact: EncoderArtifact,
        train: LabelledSplit,
        test: LabelledSplit,
        classes: tuple[str, ...],
        device: torch.device,
    ) -> None:
        self.params = params
        self.finetune = params.evaluate.finetune
        self.artifact = artifact
        self.train = train
        self.test = test
        self.test_loader = test.loader(artifact, params.runtime, params.runtime.cache_mb)
        self.classes = classes
        self.device = device

    def pair(self, budget: LabelBudget, seed: int) -> Pair:
        """Fine-tune and train from scratch on the labels that the seed draws."""
        positions = draw_labels(self.train, budget.labels_per_class, self.classes, seed)
        return Pair(
            seed=seed,
            labels=len(positions),
            pretrained=self._train_and_test(self._pretrained(seed), budget, positions, seed),
            scratch=self._train_and_test(self._scratch(seed), budget, positions, seed),
        )

    def _pretrained(self, seed: int) -> FinetuneTask:
        encoder = copy.deepcopy(self.artifact.encoder)
        encoder.set_drop_path(self.finetune.drop_path)
        classifier = Classifier(
            encoder,
            len(self.classes),
            self.finetune.feature,
            init_std=_HEAD_STD_PRETRAINED,
            seed=seed,
        )
        return self._task(classifier, self.finetune.layer_decay)

    def _scratch(self, seed: int) -> FinetuneTask:
        encoder = random_encoder(self.artifact.encoder.architecture, seed)
        encoder.set_drop_path(self.finetune.drop_path)
        classifier = Classifier(
            encoder,
            len(self.classes),
            self.finetune.feature,
            init_std=_HEAD_STD_SCRATCH,
            seed=seed,
        )
        return self._task(classifier, layer_decay=1.0)

    def _task(self, classifier: Classifier, layer_decay: float) -> FinetuneTask:
        return FinetuneTask(
            classifier, self.artifact.statistics, layer_decay, self.finetune.label_smoothing
        )

    def _train_and_test(
        self, task: FinetuneTask, budget: LabelBudget, positions: Tensor, seed: int
    ) -> Accuracy:
        trainer = Trainer(
            task,
            self._loader(positions, seed),
            self.finetune.optim(budget),
            seed=seed,
            place=Place(self.device),
            runtime=self.params.runtime,
            make_optimizer=adamw(),
            title="finetune",
        )
        trainer.run()
        predictions = task.predict(self.test_loader, self.device, trainer.precision)
        return measure_accuracy(predictions, self.test.labels, len(self.classes))

    def _loader(self, positions: Tensor, seed: int) -> TrainLoader:
        architecture = self.artifact.encoder.architecture
        return TrainLoader(
            self.train.reader,
            height=architecture.height,
            width=architecture.width,
            batch=self.finetune.batch,
            seed=seed,
            purpose="finetune",
            augment=self.finetune.augment,
            workers=self.params.runtime.workers,
            cache_mb=self.params.runtime.cache_mb,
            positions=positions,
        )


def run(params: Params, shards: Path, pretrained: Path, device: torch.device) -> Outcome:
    """Fine-tune at every label budget for every seed, pretrained and from scratch.

    A seed decides the labels (the same for both arms), the initial head, the order and the
    crops. Raises DataError for an encoder that does not fit the data, for a class with fewer
    labels than a budget asks for, and for a split without labels.
    """
    info = read_dataset_info(shards)
    reason = why_not_classifiable(info)
    if reason is not None:
        return Outcome(PROTOCOL, skipped=reason)
    artifact = load_encoder(pretrained)
    check_encoder_fits(artifact, info)
    train, test = train_and_test(shards)
    comparison = Comparison(params, artifact, train, test, info.classes, device)
    finetune = params.evaluate.finetune
    # A budget that cannot be met is said before the first is spent.
    for budget in finetune.budgets:
        draw_labels(train, budget.labels_per_class, info.classes, params.seed)
    numbers: dict[str, float] = {}
    detail: dict[str, Any] = {"images": {split.name: len(split) for split in (train, test)}}
    for budget in finetune.budgets:
        seeds = range(params.seed, params.seed + budget.seeds)
        pairs = [comparison.pair(budget, seed) for seed in seeds]
        name = budget_name(budget)
        numbers |= _numbers(name, pairs)
        detail[name] = {
            "recipe": finetune.optim(budget).describe(pairs[0].labels),
            "runs": [_described(pair, info.classes) for pair in pairs],
        }
        LOG.info(
            "finetune: %s: %.3f pretrained, %.3f from scratch",
            name,
            numbers[f"accuracy_{name}"],
            numbers[f"accuracy_{name}_scratch"],
        )
    return Outcome(PROTOCOL, numbers, detail)


def budget_name(budget: LabelBudget) -> str:
    count = budget.labels_per_class
    return "all" if count is None else f"{count}_per_class"


def _numbers(name: str, pairs: list[Pair]) -> dict[str, float]:
    """Return mean and deviation over the seeds (one has none), and the gain, pair by pair."""
    values = {
        f"accuracy_{name}": [pair.pretrained.top1 for pair in pairs],
        f"accuracy_{name}_scratch": [pair.scratch.top1 for pair in pairs],
        f"gain_{name}": [pair.pretrained.top1 - pair.scratch.top1 for pair in pairs],
    }
    numbers = {}
    for key, over_seeds in values.items():
        numbers[key], deviation = mean_and_std(over_seeds)
        if len(over_seeds) > 1:
            numbers[f"{key}_std"] = deviation
    return numbers


def _described(pair: Pair, classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "seed": pair.seed,
        "labels": pair.labels,
        "pretrained": pair.pretrained.to_dict(classes),
        "scratch": pair.scratch.to_dict(classes),
    }
