"""A simple feature pyramid on the last patch map of a plain encoder (ViTDet, arXiv 2203.16527)."""

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from mae.model.patches import Size

_FINEST_STRIDE = 2  # pixels; a finer map has nothing to add to the image itself


def pyramid_strides(patch: Size) -> tuple[float, ...]:
    """Return the pixels between neighbouring cells of each level, from fine to coarse.

    They follow from the patch alone: ViTDet's levels (1/4, 1/2, 1 and 2 patches, strides 4 to
    32 for patch 16) less those finer than two pixels, so that small patches do not pay for maps
    of nearly the size of the image. Of a patch that is not square the shorter side counts.
    """
    strides = (min(patch) * patches for patches in (0.25, 0.5, 1.0, 2.0))
    return tuple(stride for stride in strides if stride >= min(_FINEST_STRIDE, *patch))


class FeaturePyramid(nn.Module):
    """Patch map (N, D, Hp, Wp) -> a list of maps (N, out_channels, h, w), from fine to coarse.

    Level i has a cell for every `strides[i]` pixels on both axes. An odd grid is rounded up at
    the coarsest level, so that each level covers the whole image.
    """

    def __init__(self, dim: int, patch: Size, out_channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.out_channels = out_channels
        self.strides = pyramid_strides(patch)
        self.levels = nn.ModuleList(
            _level(dim, min(patch) / stride, out_channels) for stride in self.strides
        )

    def forward(self, patches: Tensor) -> list[Tensor]:
        square = self._on_square_cells(patches)
        return [level(square) for level in self.levels]

    def _on_square_cells(self, patches: Tensor) -> Tensor:
        ph, pw = self.patch
        if ph == pw:
            return patches
        side = min(ph, pw)
        cells = (patches.shape[2] * ph // side, patches.shape[3] * pw // side)
        return F.interpolate(patches, size=cells, mode="bilinear", align_corners=False)


def _level(dim: int, upscaling: float, out_channels: int) -> nn.Sequential:
    """Resample a patch map by `upscaling` (4, 2, 1 or 0.5) and bring it to out_channels."""
    resample: list[nn.Module]
    if upscaling == 4:
        resample = [_double(dim, dim // 2), LayerNorm2d(dim // 2), nn.GELU()]
        resample += [_double(dim // 2, dim // 4)]
        width = dim // 4
    elif upscaling == 2:
        resample = [_double(dim, dim // 2)]
        width = dim // 2
    elif upscaling == 1:
        resample = []
        width = dim
    else:
        resample = [nn.MaxPool2d(2, ceil_mode=True)]
        width = dim
    return nn.Sequential(
        *resample,
        nn.Conv2d(width, out_channels, kernel_size=1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )


def _double(width: int, out: int) -> nn.Module:
    return nn.ConvTranspose2d(width, out, kernel_size=2, stride=2)
