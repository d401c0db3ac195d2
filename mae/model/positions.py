"""Where a patch lies, as a vector: fixed 2-D sine and cosine, or learned (arXiv 2111.06377)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mae.model.patches import Size


def sincos_positions(dim: int, grid: Size) -> Tensor:
    """Return positions float32 (L, D) of a patch grid (Hp, Wp), row by row.

    The first half of the channels encodes the column, the second the row; each half holds
    sines, then cosines, of D / 4 frequencies. dim must be a multiple of 4.
    """
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64),
        torch.arange(grid[1], dtype=torch.float64),
        indexing="ij",
    )
    halves = [axis.reshape(-1, 1) * frequency for axis in (column, row)]
    return torch.cat([f(half) for half in halves for f in (torch.sin, torch.cos)], dim=1).float()


def resample_positions(positions: Tensor, grid: Size, wanted: Size) -> Tensor:
    """Bring learned positions (L, D) of one patch grid to another, rows and columns apart.

    Bicubic, antialiased where the new grid is coarser, as timm does.
    """
    if grid == wanted:
        return positions
    table = positions.unflatten(0, grid).permute(2, 0, 1)[None].float()
    # Into a single column torch copies the first row to all: a single row is right.
    column = wanted[1] == 1
    table, wanted = (table.mT, (1, wanted[0])) if column else (table, wanted)
    table = F.interpolate(table, wanted, mode="bicubic", antialias=True, align_corners=False)
    table = table.mT if column else table
    return table[0].permute(1, 2, 0).flatten(0, 1).to(positions.dtype)
