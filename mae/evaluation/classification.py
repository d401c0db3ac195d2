"""What learns in fine-tuning: a classifier, from batches that may be erased and mixed."""

from typing import Any

import torch
from torch import Tensor, nn

from mae.data.loading.augment import AugmentedBatch
from mae.data.loading.batch import Batch
from mae.data.loading.mixing import erase, mix_images, mix_targets
from mae.model.heads import Classifier
from mae.model.noise import add_noise
from mae.pixels import PixelNormalizer, PixelStatistics
from mae.training.groups import decay_groups, layer_decay_groups
from mae.training.task import Task


class ClassificationTask(Task):
    """Labelled batch -> cross entropy with smoothed or mixed labels.

    All of the classifier learns that is not frozen.
    """

    def __init__(
        self,
        classifier: Classifier,
        statistics: PixelStatistics,
        layer_decay: float,
        label_smoothing: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.normalize = PixelNormalizer(statistics)
        self.layer_decay = layer_decay
        self.label_smoothing = label_smoothing
        self.seed = seed

    def forward(
        self, batch: Batch | AugmentedBatch, epoch: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        images, targets = self.normalize(batch.images), batch.labels
        smoothing = self.label_smoothing
        if isinstance(batch, AugmentedBatch):
            images = self._augmented(images, batch, epoch)
            classes = self.classifier.head.out_features
            targets = mix_targets(batch.labels, classes, smoothing, batch.shares)
            smoothing = 0.0  # it is in the targets
        logits = self.classifier(images).float()
        return nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing), {}

    def _augmented(self, images: Tensor, batch: AugmentedBatch, epoch: int) -> Tensor:
        """Erase and mix, in this order, as in the reference code."""
        if len(batch.erased):
            blank = torch.zeros_like(images[: len(batch.erased)])
            noise = add_noise(blank, batch.ids[batch.erased], self.seed, epoch, strength=1.0)
            images = erase(images, batch.erased, batch.erased_boxes, noise)
        return mix_images(images, batch.shares, batch.boxes)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        if self.layer_decay == 1:
            return decay_groups(self, weight_decay)
        return layer_decay_groups(self, self.classifier.encoder, weight_decay, self.layer_decay)

    @property
    def learned(self) -> int:
        """How many numbers learn."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
