"""From stored integers to what a network sees: scale to 0..1, subtract mean, divide by std."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PixelStatistics:
    """What pixels are, and how they are distributed in the training images.

    mean, std: per channel, pixels scaled to 0..1. bit_depth: 8 (uint8, full scale 255) or 16
    (uint16, full scale 65535). bands, depth_range: which channels and values of a file become
    them (mae/data/decode.py).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bit_depth: int = 8
    bands: tuple[int, ...] | None = None
    depth_range: tuple[int, int] = (0, 65535)

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def full_scale(self) -> int:
        return 2**self.bit_depth - 1

    def to_dict(self) -> dict[str, Any]:
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "bit_depth": self.bit_depth,
            "bands": self.bands and list(self.bands),
            "depth_range": list(self.depth_range),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "PixelStatistics":
        low, high = content.get("depth_range", (0, 65535))
        bands = content.get("bands")
        return cls(
            mean=tuple(content["mean"]),
            std=tuple(content["std"]),
            bit_depth=int(content["bit_depth"]),
            bands=bands and tuple(bands),
            depth_range=(low, high),
        )


class PixelNormalizer(nn.Module):
    """uint8 or uint16 (N, C, H, W) -> normalised float32 (N, C, H, W), and back."""

    scale: Tensor
    shift: Tensor

    def __init__(self, statistics: PixelStatistics) -> None:
        super().__init__()
        mean = torch.tensor(statistics.mean, dtype=torch.float64)[:, None, None]
        # A channel that never varies carries nothing; dividing by its zero would carry NaN.
        std = torch.tensor(statistics.std, dtype=torch.float64).clamp(min=1e-6)[:, None, None]
        self.register_buffer("scale", (1 / (std * statistics.full_scale)).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images.to(torch.float32, copy=True).mul_(self.scale).add_(self.shift)

    def invert(self, normalised: Tensor) -> Tensor:
        """Return normalised pixels as stored numbers: float32 (N, C, H, W), not rounded."""
        return (normalised - self.shift) / self.scale
