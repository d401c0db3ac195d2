"""Vectors of images, as frozen networks see them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mae.data.dataset import DatasetInfo
from mae.errors import DataError
from mae.model.artifact import EncoderArtifact
from mae.model.encoder import Encoder
from mae.params import FrozenFeature, Precision
from mae.pixels import PixelNormalizer, PixelStatistics
from mae.training.devices import AUTOCAST_DTYPE, resolve_precision

_BASELINE_SIDE = 32


@dataclass(frozen=True)
class FrozenArm:
    """What turns images into vectors without learning any more; encoder None: the pixels alone.

    Images are resized to cover `resize` x (height, width), cut to height x width and normalised
    by `statistics`. weights_sha: equal weights have an equal one.
    """

    name: str
    encoder: Encoder | None
    statistics: PixelStatistics
    height: int
    width: int
    resize: float
    weights_sha: str

    @property
    def dim(self) -> int:
        """The length D of one feature."""
        if self.encoder is not None:
            return self.encoder.dim
        sides = min(self.height, _BASELINE_SIDE), min(self.width, _BASELINE_SIDE)
        return self.statistics.channels * sides[0] * sides[1]

    @property
    def embedded_width(self) -> int:
        """The length W of what `Embedder` gives: both features, or the pixels."""
        return self.dim if self.encoder is None else 2 * self.dim


def check_encoder_fits(artifact: EncoderArtifact, info: DatasetInfo) -> None:
    """Raise DataError for a dataset whose images the encoder cannot take."""
    check_pixels_fit(artifact, info.statistics, f"those of {info.folder}")


def check_pixels_fit(artifact: EncoderArtifact, data: PixelStatistics, whose: str) -> None:
    """Raise DataError for an encoder that takes other pixels than `data`, or cannot cut its own
    images into patches."""
    encoder, architecture = artifact.statistics, artifact.encoder.architecture
    if (encoder.channels, encoder.bit_depth) != (data.channels, data.bit_depth):
        raise DataError(
            f"the encoder takes images of {encoder.channels} channels and {encoder.bit_depth} "
            f"bits, and {whose} have {data.channels} and {data.bit_depth}: set "
            "data.channels and data.bit_depth to the encoder's and shard again, or pretrain on "
            "these images"
        )
    sides, patch = (architecture.height, architecture.width), architecture.patch
    padded = getattr(architecture, "pad", False)
    if architecture.channels != encoder.channels or (
        not padded and (sides[0] % patch[0] or sides[1] % patch[1])
    ):
        raise DataError(
            f"the encoder's description contradicts itself: {architecture.channels} channels of "
            f"{sides[0]} x {sides[1]} pixels in patches of {patch[0]} x {patch[1]}, and statistics "
            f"of {encoder.channels} channels: make or import it again"
        )


def pixels(images: Tensor) -> Tensor:
    """The baseline that knows nothing: the image itself, averaged down to 32 x 32 at most."""
    height, width = (min(side, _BASELINE_SIDE) for side in images.shape[-2:])
    return nn.functional.adaptive_avg_pool2d(images, (height, width)).flatten(1)


def embedding_precision(device: torch.device) -> Precision:
    """float32 on a CPU, where features are computed once and kept; on a GPU what it is fast in."""
    return "fp32" if device.type == "cpu" else resolve_precision("auto", device)


class Embedder:
    """Stored images uint8 or uint16 (N, C, H, W) -> float32 (N, W) on the device.

    W holds cls, then mean, of the encoder; or the pixels. `select` takes a feature out.
    """

    def __init__(self, arm: FrozenArm, device: torch.device) -> None:
        self.device = device
        self._encoder = None if arm.encoder is None else arm.encoder.to(device).eval()
        self._normalize = PixelNormalizer(arm.statistics).to(device)
        self._dtype = AUTOCAST_DTYPE[embedding_precision(device)]

    @torch.no_grad()
    def __call__(self, stored: Tensor) -> Tensor:
        images = self._normalize(stored.to(self.device))
        if self._encoder is None:
            return pixels(images)
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
            features = self._encoder(images)
        return torch.cat([features.cls.float(), features.mean.float()], dim=1)


def select(vectors: Tensor, arm: FrozenArm, feature: FrozenFeature) -> Tensor:
    """Return one feature (n, D) of embedded images (n, W), a view: `both` is all of it."""
    if arm.encoder is None or feature == "both":
        return vectors
    return vectors[:, : arm.dim] if feature == "cls" else vectors[:, arm.dim :]
