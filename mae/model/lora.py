"""Low-rank adapters on the products of attention (LoRA, arXiv 2106.09685).

The weights W of a linear layer stay as they are, and what is learned is added to what they give:
W x + (alpha / rank) B A x, with A (rank, in) and B (out, rank) of few rows and columns. B starts at
zero, so an adapted encoder begins as the very encoder that it was; merged, it is a plain one again.
"""

import math

import torch
from torch import Tensor, nn

from mae.errors import ParamsError
from mae.hashing import stream
from mae.model.encoder import Encoder
from mae.model.linear import Linear

_ADAPTED = ("qkv", "proj")  # of each block's attention


class LowRankLinear(nn.Module):
    """A linear layer (..., in) -> (..., out) and the two thin ones whose product is added to it."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.down = Linear(base.in_features, rank, bias=False)
        self.up = Linear(rank, base.out_features, bias=False)
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.up(self.down(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the layer with what was learned folded into its weights."""
        learned = self.up.weight.double() @ self.down.weight.double()
        self.base.weight.add_((self.scale * learned).to(self.base.weight.dtype))
        return self.base


def add_adapters(encoder: Encoder, rank: int, alpha: float, seed: int) -> list[nn.Parameter]:
    """Put adapters on the qkv and the output product of every block; return what is to learn.

    Their start is a function of the seed. Nothing is frozen here: see `freezing.learn_only`.
    Raises ParamsError for a rank that is none, ValueError for an encoder that has adapters.
    """
    if rank > encoder.dim:
        raise ParamsError(
            f"evaluate.lora.rank {rank} exceeds the encoder's width {encoder.dim}, so that nothing "
            "would be low about it: choose a smaller one, as 8"
        )
    if _adapters(encoder):
        raise ValueError("the encoder has adapters already: merge them first")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "adapters") >> 1)
        for block in encoder.blocks:
            attention = block.get_submodule("attn")
            for name in _ADAPTED:
                base = attention.get_submodule(name)
                assert isinstance(base, nn.Linear)
                setattr(attention, name, LowRankLinear(base, rank, alpha).to(base.weight))
    return [
        parameter
        for _, _, adapter in _adapters(encoder)
        for parameter in (*adapter.down.parameters(), *adapter.up.parameters())
    ]


def merge(encoder: Encoder) -> None:
    """Fold every adapter into the weights that it adapts: equal within rounding, names as before.

    What was frozen stays frozen.
    """
    for attention, name, adapter in _adapters(encoder):
        setattr(attention, name, adapter.merged())


def _adapters(encoder: Encoder) -> list[tuple[nn.Module, str, LowRankLinear]]:
    """Return each adapter with the module and the name it stands under, first block first."""
    attentions = [block.get_submodule("attn") for block in encoder.blocks]
    return [
        (attention, name, layer)
        for attention in attentions
        for name in _ADAPTED
        if isinstance(layer := attention.get_submodule(name), LowRankLinear)
    ]
