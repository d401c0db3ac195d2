"""The ways to mask an image: each is an order of its patches, the first to be shown first.

All arithmetic is on 64-bit integers, so that every device computes the same.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mae.hashing import random_bits
from mae.model.patches import Size

Kind = Literal["random", "block", "inverse_block", "grid", "mixed"]

_BLOCKS = 8  # drawn for an image; as many as it takes are used
_GRID_PERIOD = 8  # patches


class Draw(NamedTuple):
    """What an order is a function of: ids int64 (N,) are the images', grid (Hp, Wp) theirs."""

    seed: int
    epoch: int
    ids: Tensor
    grid: Size

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def bits(self, purpose: str, count: int) -> Tensor:
        """Return 64-bit hashes for each image, int64 (N, count)."""
        return random_bits(self.seed, purpose, self.epoch, self.ids, count)

    def numbers(self, purpose: str, count: int) -> Tensor:
        """Return natural numbers below 2^62 for each image, int64 (N, count)."""
        return self.bits(purpose, count) & ((1 << 62) - 1)

    def rows_and_columns(self) -> tuple[Tensor, Tensor]:
        """Return the row and the column of each patch, int64 (L,)."""
        patch = torch.arange(self.patches, device=self.ids.device)
        return patch // self.grid[1], patch % self.grid[1]


def visible_first(
    kind: Kind,
    draw: Draw,
    kept: int,
    empty: Tensor | None = None,
    hidden: Tensor | int | None = None,
) -> Tensor:
    """Return the patches of each image in the order in which to show them, int64 (N, L).

    kept: how many of all patches are shown. empty bool (N, L): the patches without data, which
    come last; hidden (N, 1): how many of each image's others are hidden. Ties go by chance.
    """
    first = [] if empty is None else [empty.long()]
    chance = draw.bits("mask", draw.patches)
    if kind == "random":
        return lexicographic(*first, chance)
    if kind == "grid":
        return lexicographic(*first, _grid_score(draw), chance)
    if kind == "inverse_block":
        return lexicographic(*first, _distance_from_block(draw, kept), chance)
    blocks = _block_score(draw, draw.patches - kept)
    if kind == "block":
        return lexicographic(*first, -blocks, chance)
    # Mixed: half of the hidden patches are the first that blocks hide, the others lie anywhere.
    rank = torch.argsort(lexicographic(*first, blocks, chance), dim=1)
    half = (draw.patches - kept if hidden is None else hidden) // 2
    return lexicographic(*first, (rank < half).long(), chance)


def lexicographic(*keys: Tensor) -> Tensor:
    """Return the order (N, L) that sorts by the first key (N, L), ties by the second, and on."""
    order = torch.argsort(keys[-1], dim=1, stable=True)
    for key in reversed(keys[:-1]):
        order = order.gather(1, torch.argsort(key.gather(1, order), dim=1, stable=True))
    return order


def _grid_score(draw: Draw) -> Tensor:
    """Return (N, L) numbers whose smallest quarter is one patch of each 2 x 2, and so on.

    Those of ordered dithering (Bayer, 1973): any share of the patches, the lowest first, is
    spread as regularly as it can be. Each image has the pattern at an offset of its own.
    """
    row, column = draw.rows_and_columns()
    offset = draw.numbers("mask grid", 2) % _GRID_PERIOD
    row, column = row + offset[:, :1], column + offset[:, 1:]
    score = torch.zeros_like(row)
    for level in (0, 1, 2):  # the lowest bit of the place decides most
        r, c = (row >> level) & 1, (column >> level) & 1
        score = 4 * score + 2 * (r ^ c) + r
    return score


def _distance_from_block(draw: Draw, area: int) -> Tensor:
    """Return the signed distance of each patch (N, L) from one block of at least `area` patches."""
    return _distances(draw, _blocks(draw, area, area, 1))[:, 0]


def _block_score(draw: Draw, hidden: int) -> Tensor:
    """Return (N, L) numbers, the smallest for the patches to hide first.

    Blocks of a quarter to a half of the hidden patches each (as in BEiT, arXiv 2106.08254) are
    hidden one after the other, each from its middle outwards, and then what lies nearest to any.
    """
    quarter = max(1, hidden // 4)
    distances = _distances(draw, _blocks(draw, quarter, max(quarter, hidden // 2), _BLOCKS))
    far = draw.grid[0] + draw.grid[1]
    inside = distances < 0
    number = torch.where(inside, torch.arange(_BLOCKS, device=inside.device)[:, None], _BLOCKS)
    first = number.amin(dim=1)
    chosen = distances.gather(1, first.clamp(max=_BLOCKS - 1)[:, None]).squeeze(1)
    distance = torch.where(first < _BLOCKS, chosen, distances.amin(dim=1))
    return first * 2 * far + distance


def _blocks(draw: Draw, smallest: int, largest: int, count: int) -> Tensor:
    """Draw blocks, int64 (N, count, 4): top, left, height, width, all inside the grid.

    Their areas lie between the two given, or a little above; no side is much over twice the
    other where the grid allows it.
    """
    hp, wp = draw.grid
    rectangles = [_heights(area, draw.grid) for area in range(smallest, largest + 1)]
    table = torch.tensor(rectangles, device=draw.ids.device)
    chance = draw.numbers("mask blocks", 4 * count).unflatten(1, (count, 4))
    choice = chance[..., 0] % (largest - smallest + 1)
    lowest, highest = table[choice].unbind(dim=-1)
    height = lowest + chance[..., 1] % (highest - lowest + 1)
    width = -(-(smallest + choice) // height)
    top = chance[..., 2] % (hp - height + 1)
    left = chance[..., 3] % (wp - width + 1)
    return torch.stack([top, left, height, width], dim=-1)


def _heights(area: int, grid: Size) -> tuple[int, int]:
    """Return the least and the greatest height of a block of `area` patches inside the grid."""
    lowest = max(1, -(-area // grid[1]), min(grid[0], math.isqrt(area // 2)))
    return lowest, max(lowest, min(grid[0], math.isqrt(2 * area)))


def _distances(draw: Draw, blocks: Tensor) -> Tensor:
    """Return the distance in patches of each patch from each block, int64 (N, B, L).

    Outside it is 0 for those that touch the block, corners included; inside it is negative, -1
    along the edge.
    """
    row, column = draw.rows_and_columns()
    top, left, height, width = (part[..., None] for part in blocks.unbind(dim=-1))
    above, below = top - row, row - (top + height - 1)
    before, after = left - column, column - (left + width - 1)
    return torch.stack([above, below, before, after]).amax(dim=0) - 1
