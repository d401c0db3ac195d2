"""Fixed 2-D sine-cosine positions (MAE, arXiv 2111.06377, section 3 and its reference code)."""

import torch
from torch import Tensor


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
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
