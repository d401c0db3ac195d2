"""Which patches are hidden: a pure function of (seed, epoch, sample id)."""

from typing import NamedTuple

import torch
from torch import Tensor

from mae.hashing import random_bits
from mae.params import MaskParams


class Masking(NamedTuple):
    """Indices of the visible patches, int64 (N, K), and of the hidden ones, int64 (N, M)."""

    keep: Tensor
    hidden: Tensor

    def as_mask(self) -> Tensor:
        """Return the boolean mask (N, L), True = hidden."""
        n, length = len(self.keep), self.keep.shape[1] + self.hidden.shape[1]
        mask = torch.zeros(n, length, dtype=torch.bool, device=self.keep.device)
        return mask.scatter_(1, self.hidden, True)


def draw_masking(mask: MaskParams, seed: int, epoch: int, ids: Tensor, patches: int) -> Masking:
    """Hide the same exact number of `patches` in every image, chosen by the hash of its id.

    The mask of an image depends neither on the others in the batch nor on the device.
    """
    order = torch.argsort(random_bits(seed, "mask", epoch, ids, patches), dim=1, stable=True)
    kept = mask.kept(patches)
    return Masking(
        keep=order[:, :kept].sort(dim=1).values, hidden=order[:, kept:].sort(dim=1).values
    )
