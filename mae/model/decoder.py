"""The decoder: from encoded visible patches to a prediction for the hidden ones, or for all."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae.model.blocks import LayerNorm, initialise, make_blocks, run_blocks
from mae.model.linear import Linear
from mae.model.masking import Masking
from mae.model.patches import Size
from mae.model.positions import resample_positions, sincos_positions
from mae.params import DecoderParams


class Decoder(nn.Module):
    """Encoded tokens (N, 1 + K, D) and the masking -> predictions (N, M, outputs).

    The sequence is [class, visible, hidden]: each token carries its position, so nothing needs
    to be put back in image order. Predictions are of the hidden patches, its last M, or, with
    `everywhere`, of all but the class token, in that order. Where the encoder was given the mask
    tokens, it hands over the whole sequence.
    """

    positions: Tensor | None

    def __init__(
        self, params: DecoderParams, dim: int, outputs: int, grid: Size, everywhere: bool = False
    ) -> None:
        super().__init__()
        self.grid = grid
        self.everywhere = everywhere
        self.position_kind = params.positions
        self.embed = Linear(dim, params.width)
        self.mask_token: Tensor | None = None
        if params.mask_tokens == "decoder":
            self.mask_token = nn.Parameter(torch.zeros(1, 1, params.width))
        self.blocks = make_blocks(params.width, params.depth, params.heads, mlp_ratio=4.0)
        self.norm = LayerNorm(params.width)
        self.predict = Linear(params.width, outputs)
        self.apply(initialise)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)
        self._make_positions(params)

    def forward(
        self,
        tokens: Tensor,
        masking: Masking,
        grid: Size,
        encoder_positions: Tensor | None = None,
    ) -> Tensor:
        """encoder_positions (1, L, D) serve where positions are shared."""
        positions = self.positions_for(grid, encoder_positions)
        tokens = self.embed(tokens)
        cls, patches = tokens[:, :1], tokens[:, 1:]
        if self.mask_token is not None:
            hidden = self.mask_token.to(tokens.dtype).expand(*masking.hidden.shape, -1)
            patches = torch.cat([patches, hidden], dim=1)
        patches = patches + F.embedding(masking.order, positions)
        sequence = torch.cat([cls.to(patches.dtype), patches], dim=1)
        keys = None if masking.valid is None else F.pad(masking.valid, (1, 0), value=True)
        asked = masking.order.shape[1] if self.everywhere else masking.hidden.shape[1]
        return self.predict(self.norm(run_blocks(self.blocks, sequence, keys, last=asked)))

    def positions_for(self, grid: Size, encoder_positions: Tensor | None = None) -> Tensor:
        """Return positions (L, width) for a patch grid, whether it is the usual one or not."""
        if self.positions is None:
            assert encoder_positions is not None
            return F.linear(encoder_positions[0], self.embed.weight)
        if grid == self.grid or self.position_kind == "learned":
            return resample_positions(self.positions, self.grid, grid)
        return sincos_positions(self.positions.shape[1], grid).to(self.positions.device)

    def _make_positions(self, params: DecoderParams) -> None:
        if params.positions == "learned":
            self.positions = nn.Parameter(torch.empty(self.grid[0] * self.grid[1], params.width))
            nn.init.trunc_normal_(self.positions, std=0.02)
        elif params.positions == "shared":
            self.positions = None
        else:
            positions = sincos_positions(params.width, self.grid)
            self.register_buffer("positions", positions, persistent=False)


class LinearHead(nn.Module):
    """A linear layer on the tokens of an encoder that was given the mask tokens (SimMIM)."""

    def __init__(self, dim: int, outputs: int, everywhere: bool = False) -> None:
        super().__init__()
        self.everywhere = everywhere
        self.predict = Linear(dim, outputs)
        self.apply(initialise)

    def forward(
        self,
        tokens: Tensor,
        masking: Masking,
        grid: Size,
        encoder_positions: Tensor | None = None,
    ) -> Tensor:
        asked = masking.order.shape[1] if self.everywhere else masking.hidden.shape[1]
        return self.predict(tokens[:, tokens.shape[1] - asked :])
