"""Which patches are hidden: a pure function of (seed, epoch, sample id), in whole numbers.

Each way of masking is an order of an image's patches, from the one to show first to the one to
hide first; the order is cut where the ratio says, so counts are exact and batches rectangular.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mae.model.mask_orders import Draw, lexicographic, visible_first
from mae.model.patches import Size
from mae.params import MaskParams


class Masking(NamedTuple):
    """Indices of the visible patches, int64 (N, K), and of the hidden ones, int64 (N, M).

    valid: which of both, in this order, hold data, bool (N, K + M); None: all. A patch without
    data is in neither role, whichever list it stands in to keep the batch rectangular: nothing
    may look at it and nothing is asked of it.
    """

    keep: Tensor
    hidden: Tensor
    valid: Tensor | None = None

    @property
    def order(self) -> Tensor:
        """The indices of all patches, the visible ones first: int64 (N, L)."""
        return torch.cat([self.keep, self.hidden], dim=1)

    @property
    def shown(self) -> Tensor | None:
        """Which of `keep` are there to be looked at, bool (N, K); None: all."""
        return None if self.valid is None else self.valid[:, : self.keep.shape[1]]

    @property
    def counted(self) -> Tensor | None:
        """Which of `hidden` are there to be predicted, bool (N, M); None: all."""
        return None if self.valid is None else self.valid[:, self.keep.shape[1] :]

    def as_mask(self) -> Tensor:
        """Return the boolean mask (N, L), True = hidden and to be predicted."""
        counted = self.counted
        if counted is None:
            counted = torch.ones_like(self.hidden, dtype=torch.bool)
        mask = torch.zeros(self.order.shape, dtype=torch.bool, device=self.keep.device)
        return mask.scatter_(1, self.hidden, counted)


def draw_masking(
    mask: MaskParams,
    seed: int,
    epoch: int,
    ids: Tensor,
    grid: Size,
    ratio: float | None = None,
    valid: Tensor | None = None,
) -> Masking:
    """Hide the same exact number of the patches of `grid` in every image, as its id decides.

    The mask of an image depends neither on the others in the batch nor on the device. ratio: in
    place of mask.last_ratio. valid bool (N, L): the patches that hold data; of these the ratio
    is hidden, image by image, at least one being shown.
    """
    length = grid[0] * grid[1]
    kept = mask.kept(length, ratio)
    draw = Draw(seed, epoch, ids, grid)
    if valid is None:
        order = visible_first(mask.kind, draw, kept)
        return Masking(_sorted(order[:, :kept]), _sorted(order[:, kept:]))
    table = torch.tensor([_shown_of(mask, count, ratio) for count in range(length + 1)])
    holding = valid.sum(dim=1, keepdim=True)
    shown = table.to(ids.device)[holding]
    order = visible_first(mask.kind, draw, kept, ~valid, holding - shown)
    # What holds nothing fills the visible places that are left, and then the first hidden ones.
    place = torch.arange(length, device=ids.device).expand_as(order)
    role = torch.where(place < shown, 0, torch.where(place < holding, 2, 1))
    order = order.gather(1, lexicographic(role))
    keep, hidden = _sorted(order[:, :kept]), _sorted(order[:, kept:])
    return Masking(keep, hidden, valid.gather(1, torch.cat([keep, hidden], dim=1)))


def _shown_of(mask: MaskParams, holding: int, ratio: float | None) -> int:
    """Return how many of `holding` patches are shown: at least one, and one hidden if there are."""
    return min(holding, max(1, mask.kept(holding, ratio)))


def _sorted(indices: Tensor) -> Tensor:
    return indices.sort(dim=1).values
