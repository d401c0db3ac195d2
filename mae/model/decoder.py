"""The decoder: from encoded visible patches to a prediction for each hidden one."""

import torch
from torch import Tensor, nn

from mae.model.blocks import LayerNorm, initialise, make_blocks, run_blocks
from mae.model.masking import Masking
from mae.model.patches import Size, gather_patches
from mae.model.positions import sincos_positions
from mae.params import DecoderParams


class Decoder(nn.Module):
    """Tokens (N, 1 + K, D) and the masking -> prediction (N, M, P) for the hidden patches.

    The sequence is [class, visible, hidden]: each token carries its position, so nothing needs
    to be put back in image order, and the predictions are its last M.
    """

    positions: Tensor

    def __init__(self, params: DecoderParams, dim: int, outputs: int, grid: Size) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(dim, params.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, params.width))
        self.blocks = make_blocks(params.width, params.depth, params.heads, mlp_ratio=4.0)
        self.norm = LayerNorm(params.width)
        self.predict = nn.Linear(params.width, outputs)
        self.register_buffer("positions", sincos_positions(params.width, grid), persistent=False)
        self.apply(initialise)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, masking: Masking, grid: Size) -> Tensor:
        n, hidden = masking.hidden.shape
        positions = self.positions if grid == self.grid else self._positions_for(grid)
        positions = positions.to(tokens.device).expand(n, -1, -1)
        tokens = self.embed(tokens)
        visible = tokens[:, 1:] + gather_patches(positions, masking.keep)
        masked = self.mask_token + gather_patches(positions, masking.hidden)
        sequence = torch.cat([tokens[:, :1], visible, masked.to(tokens.dtype)], dim=1)
        sequence = run_blocks(self.blocks, sequence)
        return self.predict(self.norm(sequence[:, -hidden:]))

    def _positions_for(self, grid: Size) -> Tensor:
        return sincos_positions(self.positions.shape[1], grid)
