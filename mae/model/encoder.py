"""The vision transformer that is pretrained, probed, fine-tuned and exported: always this class.

It knows nothing of masking. Given the indices of the patches to keep, it embeds and encodes
only those; without them it encodes all.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mae.model.blocks import LayerNorm, initialise, make_blocks, run_blocks
from mae.model.patches import Size, gather_patches, grid_of, patchify
from mae.model.positions import sincos_positions
from mae.params import ModelParams


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the shapes of an encoder's weights and its usual input."""

    channels: int
    height: int
    width: int
    patch: Size
    dim: int
    depth: int
    heads: int
    mlp_ratio: float

    @classmethod
    def from_params(cls, model: ModelParams, channels: int) -> "Architecture":
        return cls(
            channels=channels,
            height=model.height,
            width=model.width,
            patch=model.patch_size,
            dim=model.dim,
            depth=model.depth,
            heads=model.heads,
            mlp_ratio=model.mlp_ratio,
        )

    @property
    def grid(self) -> Size:
        """The patch grid (Hp, Wp) of the usual input."""
        return self.height // self.patch[0], self.width // self.patch[1]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Architecture":
        return cls(**{**content, "patch": tuple(content["patch"])})


class Features(NamedTuple):
    """What the encoder says of an image.

    cls (N, D): the class token. mean (N, D): the mean of the patch tokens. patches
    (N, D, Hp, Wp): the patch tokens as a map, or None when only some patches were encoded.
    """

    cls: Tensor
    mean: Tensor
    patches: Tensor | None


class Encoder(nn.Module):
    """Images (N, C, H, W), normalised, H and W multiples of the patch -> Features."""

    positions: Tensor

    def __init__(self, architecture: Architecture, drop_path: float = 0.0) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.dim = a.dim
        self.patch_embed = nn.Linear(a.channels * a.patch[0] * a.patch[1], a.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, a.dim))
        self.blocks = make_blocks(a.dim, a.depth, a.heads, a.mlp_ratio, drop_path)
        self.norm = LayerNorm(a.dim)
        self.register_buffer("positions", sincos_positions(a.dim, a.grid), persistent=False)
        self.apply(initialise)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Features:
        tokens = self.encode(images, keep)
        cls, patches = tokens[:, 0], tokens[:, 1:]
        if keep is not None:
            return Features(cls, patches.mean(dim=1), None)
        hp, wp = grid_of(images, self.architecture.patch)
        return Features(cls, patches.mean(dim=1), patches.mT.reshape(-1, self.dim, hp, wp))

    def encode(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the normalised tokens (N, 1 + K, D): class token first, then the kept patches.

        keep int64 (N, K) names the patches to encode; the others are never projected.
        """
        self._check(images)
        patches = patchify(images, self.architecture.patch)
        positions = self.positions_for(grid_of(images, self.architecture.patch)).to(images.device)
        positions = positions.expand(len(images), -1, -1)
        if keep is not None:
            patches, positions = gather_patches(patches, keep), gather_patches(positions, keep)
        tokens = self.patch_embed(patches) + positions
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.norm(run_blocks(self.blocks, tokens))

    def positions_for(self, grid: Size) -> Tensor:
        """Return positions (1, L, D) for a patch grid, whether it is the usual one or not."""
        if grid == self.architecture.grid:
            return self.positions[None]
        return sincos_positions(self.dim, grid)[None]

    def set_drop_path(self, rate: float) -> None:
        """Set drop path, rising linearly over the blocks to `rate`."""
        rates = torch.linspace(0, rate, len(self.blocks)).tolist()
        for block, block_rate in zip(self.blocks, rates, strict=True):
            for name in ("drop_path1", "drop_path2"):
                setattr(block, name, DropPath(block_rate) if block_rate else nn.Identity())

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.architecture.channels:
            raise ValueError(
                f"the encoder takes images (N, {self.architecture.channels}, H, W) "
                f"and was given {tuple(images.shape)}"
            )
