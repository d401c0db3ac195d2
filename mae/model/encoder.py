"""The vision transformer that is pretrained, probed, fine-tuned and exported: always this class.

It knows nothing of masking. Given the indices of the patches to keep, it embeds and encodes
only those; without them it encodes all.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae.model.blocks import LayerNorm, initialise, make_blocks, run_blocks, set_drop_path
from mae.model.linear import Linear
from mae.model.patches import Size, gather_patches, grid_of, pad_to_patches, patchify
from mae.model.positions import resample_positions, sincos_positions
from mae.params import ModelParams


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the shapes of an encoder's weights and its usual input.

    positions: `sincos` or `learned`. pad: images are filled up to whole patches. pooled_norm: the
    last norm is applied to the mean of the patch tokens instead of to every token.
    """

    channels: int
    height: int
    width: int
    patch: Size
    dim: int
    depth: int
    heads: int
    mlp_ratio: float
    positions: str = "sincos"
    pad: bool = False
    pooled_norm: bool = False

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
            positions=model.positions,
            pad=model.pad,
        )

    @property
    def grid(self) -> Size:
        """The patch grid (Hp, Wp) of the usual input, the last patches padded where it must be."""
        return -(-self.height // self.patch[0]), -(-self.width // self.patch[1])

    @property
    def patch_values(self) -> int:
        """The numbers in a patch: C x ph x pw."""
        return self.channels * self.patch[0] * self.patch[1]

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
        self.checkpointing = False
        self.patch_embed = Linear(a.patch_values, a.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, a.dim))
        self.blocks = make_blocks(a.dim, a.depth, a.heads, a.mlp_ratio, drop_path)
        self.norm = LayerNorm(a.dim)
        self.apply(initialise)
        nn.init.normal_(self.cls_token, std=0.02)
        if a.positions == "learned":
            self.positions = nn.Parameter(torch.empty(a.grid[0] * a.grid[1], a.dim))
            nn.init.trunc_normal_(self.positions, std=0.02)
        else:
            positions = sincos_positions(a.dim, a.grid)
            self.register_buffer("positions", positions, persistent=False)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Features:
        tokens = self.encode(images, keep)
        cls, patches = tokens[:, 0], tokens[:, 1:]
        mean = patches.mean(dim=1)
        if self.architecture.pooled_norm:
            mean = self.norm(mean)
        if keep is not None:
            return Features(cls, mean, None)
        hp, wp = grid_of(self._padded(images), self.architecture.patch)
        return Features(cls, mean, patches.mT.reshape(-1, self.dim, hp, wp))

    def encode(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the normalised tokens (N, 1 + K, D): class token first, then the kept patches.

        keep int64 (N, K) names the patches to encode; the others are never projected.
        """
        patches, grid = self.cut(images)
        if keep is not None:
            patches = gather_patches(patches, keep)
        return self.transform(self.embed(patches, grid, keep))

    def cut(self, images: Tensor) -> tuple[Tensor, Size]:
        """Return the patches (N, L, P) of images (N, C, H, W), and their grid."""
        self._check(images)
        images = self._padded(images)
        patch = self.architecture.patch
        return patchify(images, patch), grid_of(images, patch)

    def embed(self, patches: Tensor, grid: Size, keep: Tensor | None = None) -> Tensor:
        """Return tokens (N, K, D) of the patches (N, K, P) at `keep`, or of all, with positions."""
        return self.patch_embed(patches) + self.positions_at(grid, keep)

    def transform(self, tokens: Tensor, keys: Tensor | None = None) -> Tensor:
        """Put the class token before embedded patches (N, K, D) and encode: (N, 1 + K, D).

        keys bool (N, K): the patches that tokens may look at; None: all.
        """
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        if keys is not None:
            keys = F.pad(keys, (1, 0), value=True)
        checkpointing = self.checkpointing and self.training
        tokens = run_blocks(self.blocks, tokens, keys, checkpointing=checkpointing)
        return tokens if self.architecture.pooled_norm else self.norm(tokens)

    def positions_at(self, grid: Size, keep: Tensor | None = None) -> Tensor:
        """Return the positions (N, K, D) of the patches `keep` (N, K) of a grid, or (1, L, D)."""
        positions = self.positions_for(grid)
        return positions if keep is None else F.embedding(keep, positions[0])

    def positions_for(self, grid: Size) -> Tensor:
        """Return positions (1, L, D) for a patch grid, whether it is the usual one or not."""
        usual = self.architecture.grid
        if grid == usual or self.architecture.positions == "learned":
            return resample_positions(self.positions, usual, grid)[None]
        return sincos_positions(self.dim, grid).to(self.positions.device)[None]

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each layer, from the input on: for layer-wise decay."""
        stem = [self.cls_token, *self.patch_embed.parameters()]
        if isinstance(self.positions, nn.Parameter):
            stem.append(self.positions)
        return [stem, *(list(block.parameters()) for block in self.blocks)]

    def set_drop_path(self, rate: float) -> None:
        """Set drop path, rising linearly over the blocks to `rate`."""
        set_drop_path(self.blocks, rate)

    def _padded(self, images: Tensor) -> Tensor:
        if not self.architecture.pad:
            return images
        return pad_to_patches(images, self.architecture.patch)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.architecture.channels:
            raise ValueError(
                f"the encoder takes images (N, {self.architecture.channels}, H, W) "
                f"and was given {tuple(images.shape)}"
            )
