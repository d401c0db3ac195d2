"""What a pretraining method makes of a batch: its loss, the same for training and for held-out."""

from torch import Tensor, nn

from mae.data.loading.batch import Batch
from mae.model.convolutional import ConvolutionalAutoencoder
from mae.model.losses import build_loss
from mae.model.methods import PretrainingModel, Supervised
from mae.model.patches import holding_data
from mae.pixels import PixelNormalizer, PixelStatistics


class Objective(nn.Module):
    """Batch of stored images, ids and labels -> the method's loss, a float32 scalar."""

    def __init__(self, model: PretrainingModel, statistics: PixelStatistics) -> None:
        super().__init__()
        params = model.params
        self.normalize = PixelNormalizer(statistics)
        self.no_data = params.mask.no_data
        patch = model.encoder.architecture.patch
        self.loss = build_loss(params.loss, params.target, statistics.channels, patch)

    def forward(
        self,
        model: PretrainingModel,
        batch: Batch,
        seed: int,
        epoch: int,
        ratio: float | None = None,
    ) -> Tensor:
        """ratio: the share hidden, in place of the one that training ends with."""
        images = self.normalize(batch.images)
        if isinstance(model, Supervised):
            return model.loss(images, batch.labels)
        if isinstance(model, ConvolutionalAutoencoder):
            return model.loss(images, self.loss)
        outcome = model(images, batch.ids, seed, epoch, ratio, self.valid(batch.images))
        return model.loss(outcome, self.loss)

    def valid(self, stored: Tensor) -> Tensor | None:
        """Return the pixels that hold data, bool (N, H, W), or None where all do."""
        return None if self.no_data is None else holding_data(stored, self.no_data)
