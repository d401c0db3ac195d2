"""Images to patches and back, and picking some patches of each image."""

import torch
from torch import Tensor

Size = tuple[int, int]


def grid_of(images: Tensor, patch: Size) -> Size:
    """Return the patch grid (Hp, Wp) of images (N, C, H, W). Raises ValueError if there is none."""
    height, width = images.shape[-2:]
    if height % patch[0] or width % patch[1]:
        raise ValueError(
            f"images of {height} x {width} cannot be cut into patches of {patch[0]} x {patch[1]}: "
            "resize or pad them to multiples of the patch"
        )
    return height // patch[0], width // patch[1]


def patchify(images: Tensor, patch: Size) -> Tensor:
    """(N, C, H, W) -> (N, L, C * ph * pw), patches row by row, pixels in (C, ph, pw) order."""
    hp, wp = grid_of(images, patch)
    n, c = images.shape[:2]
    blocks = images.reshape(n, c, hp, patch[0], wp, patch[1])
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(n, hp * wp, c * patch[0] * patch[1])


def unpatchify(patches: Tensor, patch: Size, grid: Size) -> Tensor:
    """(N, L, C * ph * pw) -> (N, C, H, W): the inverse of patchify on the same grid."""
    n = patches.shape[0]
    blocks = patches.reshape(n, *grid, -1, *patch)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(n, -1, grid[0] * patch[0], grid[1] * patch[1])


def gather_patches(patches: Tensor, indices: Tensor) -> Tensor:
    """Pick patches (N, L, P) at indices (N, K): (N, K, P)."""
    return torch.gather(patches, 1, indices[:, :, None].expand(-1, -1, patches.shape[2]))
