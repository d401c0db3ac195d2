"""Images to patches and back, and picking some patches of each image."""

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]


def grid_of(images: Tensor, patch: Size) -> Size:
    """Return the patch grid (Hp, Wp) of images (N, C, H, W). Raises ValueError if there is none."""
    height, width = images.shape[-2:]
    if height % patch[0] or width % patch[1]:
        raise ValueError(
            f"images of {height} x {width} cannot be cut into patches of {patch[0]} x {patch[1]}: "
            "resize them to multiples of the patch, or set model.pad"
        )
    return height // patch[0], width // patch[1]


def pad_to_patches(images: Tensor, patch: Size) -> Tensor:
    """Fill (N, C, H, W) with zeros, below and to the right, up to multiples of the patch."""
    below, right = (-side % step for side, step in zip(images.shape[-2:], patch, strict=True))
    return F.pad(images, (0, right, 0, below)) if below or right else images


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


def place_patches(patches: Tensor, indices: Tensor, new: Tensor) -> Tensor:
    """Return patches (N, L, P) with `new` (N, K, P) at indices (N, K)."""
    return patches.scatter(1, indices[:, :, None].expand(-1, -1, patches.shape[2]), new)


def holding_data(stored: Tensor, no_data: int) -> Tensor:
    """Return which pixels of stored images (N, C, H, W) hold something: bool (N, H, W).

    One that is `no_data` in all channels does not.
    """
    return (stored.to(torch.int32) != no_data).any(dim=1)


def valid_patches(valid: Tensor, patch: Size) -> Tensor:
    """Return the patches all of whose pixels are valid: bool (N, L) of valid (N, H, W).

    Pixels that are added to fill the last patches are not.
    """
    return patchify(pad_to_patches(valid[:, None], patch), patch).all(dim=2)
