"""Vectors of images, computed once by frozen networks and kept in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mae.data.dataset import DatasetInfo
from mae.errors import DataError
from mae.evaluation.labelled import LabelledSplit
from mae.hashing import permutation
from mae.model.artifact import EncoderArtifact
from mae.model.encoder import Encoder
from mae.params import Feature, OptimParams, RuntimeParams
from mae.pixels import PixelNormalizer

Extractor = Callable[[Tensor], Tensor]
"""Normalised images float32 (N, C, H, W) -> a vector for each (N, D)."""

_BASELINE_SIDE = 32


def check_encoder_fits(artifact: EncoderArtifact, info: DatasetInfo) -> None:
    """Raise DataError for a dataset whose images the encoder cannot take."""
    encoder, data = artifact.statistics, info.statistics
    if (encoder.channels, encoder.bit_depth) != (data.channels, data.bit_depth):
        raise DataError(
            f"the encoder takes images of {encoder.channels} channels and {encoder.bit_depth} "
            f"bits, and those of {info.folder} have {data.channels} and {data.bit_depth}: set "
            "data.channels and data.bit_depth to the encoder's and shard again, or pretrain on "
            "these images"
        )


def feature_of(encoder: Encoder, feature: Feature, device: torch.device) -> Extractor:
    """Return the extractor of one of the encoder's features, `cls` or `mean`."""
    encoder = encoder.to(device).eval()
    return lambda images: getattr(encoder(images), feature)


def pixels(images: Tensor) -> Tensor:
    """The baseline that knows nothing: the image itself, averaged down to 32 x 32 at most."""
    height, width = (min(side, _BASELINE_SIDE) for side in images.shape[-2:])
    return nn.functional.adaptive_avg_pool2d(images, (height, width)).flatten(1)


@torch.no_grad()
def extract(
    split: LabelledSplit,
    artifact: EncoderArtifact,
    extractors: dict[str, Extractor],
    device: torch.device,
    runtime: RuntimeParams,
) -> dict[str, Tensor]:
    """Return each extractor's vectors of the split, float32 (n, D) in main memory.

    Every image is read once, whatever the number of extractors, and normalised with the
    statistics that the encoder was pretrained with.
    """
    normalize = PixelNormalizer(artifact.statistics).to(device)
    vectors: dict[str, Tensor] = {}
    start = 0
    for batch in split.loader(artifact, runtime, cache_mb=0):
        images = normalize(batch.to(device).images)
        for name, extractor in extractors.items():
            part = extractor(images).float().cpu()
            if name not in vectors:
                vectors[name] = torch.empty(len(split), part.shape[1])
            vectors[name][start : start + len(part)] = part
        start += len(batch)
    return vectors


@dataclass(frozen=True)
class FeatureBatch:
    """features float32 (N, D) and labels int64 (N,)."""

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self) -> list[Tensor]:
        return [self.features, self.labels]

    def pinned(self) -> "FeatureBatch":
        """Return the batch in page-locked memory."""
        return FeatureBatch(*(tensor.pin_memory() for tensor in self.tensors()))

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "FeatureBatch":
        return FeatureBatch(
            *(tensor.to(device, non_blocking=non_blocking) for tensor in self.tensors())
        )


class FeatureLoader:
    """Batches of cached features for the training loop, addressed by step.

    The order of an epoch is a function of (seed, purpose, epoch); its ragged end is dropped,
    and a set smaller than a batch makes batches of the whole set.
    """

    wait_seconds = 0.0

    def __init__(
        self, features: Tensor, labels: Tensor, optim: OptimParams, seed: int, purpose: str
    ) -> None:
        self.images = len(features)
        self.features = features
        self.labels = labels
        self.batch = optim.effective_batch(self.images)
        self.steps_per_epoch = optim.steps_per_epoch(self.images)
        self.seed = seed
        self.purpose = purpose

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def batches(self, start: int, stop: int) -> Iterator[FeatureBatch]:
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for step in range(start, stop):
            if self.epoch_of(step) != epoch:
                epoch = self.epoch_of(step)
                order = permutation(self.seed, self.purpose, epoch, self.images)
            first = (step % self.steps_per_epoch) * self.batch
            rows = order[first : first + self.batch]
            yield FeatureBatch(self.features[rows], self.labels[rows])
