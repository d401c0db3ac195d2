"""Resizing and positions as arithmetic that a graph can do for a height and width not known yet."""

import torch
from torch import Tensor, nn

from mae.model.encoder import Encoder
from mae.model.patches import Size

_A = -0.5  # of Keys' kernel, as in Pillow and torch's antialiased bicubic
_SUPPORT = 2.0
_WEIGHT_ONE = 1 << 16


class Resizer(nn.Module):
    """Images uint8 or uint16 (N, C, H, W) -> whole levels float64 (N, C, height, width).

    Resized (bicubic, antialiased) to just cover resize x (height, width), aspect kept, and cropped
    in the middle. To the bit what `mae.data.loading.views.evaluation_views` shows: weights are
    multiples of 2^-16 and all products exact, so that rounding goes the same way everywhere.
    """

    def __init__(self, height: int, width: int, resize: float, full_scale: int) -> None:
        super().__init__()
        self.output = (height, width)
        self.goals = tuple(max(side, round(side * resize)) for side in self.output)
        self.full_scale = full_scale

    def forward(self, images: Tensor) -> Tensor:
        pixels = [torch.arange(side, dtype=torch.float64) for side in images.shape[-2:]]
        # Numbers in the graph, not symbols of the tracer's: nothing may depend on the example.
        sides = [torch.ones_like(pixel).sum() for pixel in pixels]
        # A number over a tensor would be the number times a reciprocal, off in the last bit.
        covering = [
            torch.full_like(sides[0], goal) / side
            for goal, side in zip(self.goals, sides, strict=True)
        ]
        scale = torch.maximum(*covering)
        rows, columns = (self._weights(axis, pixels[axis], sides[axis], scale) for axis in range(2))
        resized = rows @ images.to(torch.float64) @ columns.mT
        return (resized + 0.5).floor().clamp(0, self.full_scale)

    def _weights(self, axis: int, pixels: Tensor, side: Tensor, scale: Tensor) -> Tensor:
        """Return the matrix (output, side) that resizes along an axis and crops."""
        output = self.output[axis]
        outer = torch.clamp((side * scale).round(), min=self.goals[axis])
        first = ((outer - output) / 2).round()
        places = torch.arange(output, dtype=torch.float64) + first
        weights = bicubic_weights(places, side / outer, pixels, side)
        return _whole(*weights) / _WEIGHT_ONE


def bicubic_weights(
    places: Tensor, scale: Tensor, pixels: Tensor, side: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weights (P, S) that sum to 1 of the pixels for output `places`, and distances (P, S).

    places float64 (P,), pixels float64 (S,) = 0 .. side - 1; scale: input pixels to an output one.
    Distances are from the centres, in units of the kernel. Keys' kernel in Pillow's window.
    """
    stretch = scale.clamp(min=1.0)
    centres = (scale * (places + 0.5))[:, None]
    low = (centres - _SUPPORT * stretch + 0.5).clamp(min=0).floor()
    high = torch.minimum((centres + _SUPPORT * stretch + 0.5).floor(), side)
    distance = ((pixels + 0.5) - centres) / stretch
    x = distance.abs()
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
    kernel = near * (x < 1) + far * ((x >= 1) & (x < 2))
    weights = kernel * ((pixels >= low) & (pixels < high))
    return weights / weights.sum(dim=1, keepdim=True), x


def _whole(weights: Tensor, distance: Tensor) -> Tensor:
    """Round weights (P, S) to multiples of 2^-16, as whole numbers that sum to 2^16 in each row."""
    whole = (weights * _WEIGHT_ONE).round()
    missing = _WEIGHT_ONE - whole.sum(dim=1, keepdim=True)
    nearest = distance.argmin(dim=1, keepdim=True)
    return whole + missing * (torch.arange(whole.shape[1]) == nearest)


class AnyGridEncoder(Encoder):
    """An Encoder that finds the positions of a patch grid by arithmetic, so that a graph can."""

    def positions_for(self, grid: Size) -> Tensor:
        if self.architecture.positions == "learned":
            return self._resampled(grid)
        return self._sincos(grid)

    def _sincos(self, grid: Size) -> Tensor:
        """The very numbers of `sincos_positions`."""
        quarter = self.dim // 4
        frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        angles = [torch.arange(side, dtype=torch.float64)[:, None] * frequency for side in grid]
        row, column = (torch.cat([angle.sin(), angle.cos()], dim=1).float() for angle in angles)
        table = torch.cat(
            [
                column[None].expand(grid[0], -1, -1),
                row[:, None].expand(-1, grid[1], -1),
            ],
            dim=2,
        )
        return table.flatten(0, 1)[None]

    def _resampled(self, grid: Size) -> Tensor:
        """What `resample_positions` makes of the learned ones, by two products of matrices."""
        usual = self.architecture.grid
        rows, columns = (
            self._axis(before, after) for before, after in zip(usual, grid, strict=True)
        )
        table = self.positions.double().reshape(*usual, self.dim).permute(2, 0, 1)
        return (rows @ table @ columns.mT).permute(1, 2, 0).flatten(0, 1).float()[None]

    @staticmethod
    def _axis(before: int, after: int) -> Tensor:
        places = torch.arange(after, dtype=torch.float64)
        after_all = torch.ones_like(places).sum()
        scale = torch.full_like(after_all, before) / after_all
        pixels = torch.arange(before, dtype=torch.float64)
        return bicubic_weights(places, scale, pixels, torch.tensor(float(before)).double())[0]
