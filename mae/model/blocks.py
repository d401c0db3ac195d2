"""Stacks of timm's transformer blocks, their initialisation, and the choice of attention kernel."""

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

# Up to this many tokens a CPU runs matmul-softmax-matmul faster than the fused kernel, whose
# bf16 backward is several times slower there; beyond it the quadratic memory costs more.
_PLAIN_ATTENTION_TOKENS = 512


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with the epsilon of the MAE reference code."""

    def __init__(self, width: int, **device_and_dtype: Any) -> None:
        super().__init__(width, eps=1e-6, **device_and_dtype)


def make_blocks(
    dim: int, depth: int, heads: int, mlp_ratio: float, drop_path: float = 0.0
) -> nn.ModuleList:
    """Return `depth` pre-norm blocks; drop path rises linearly to its full rate at the last."""
    rates = torch.linspace(0, drop_path, depth).tolist()
    return nn.ModuleList(
        Block(dim, heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm, drop_path=rate)
        for rate in rates
    )


def run_blocks(blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
    """(N, T, D) -> (N, T, D), through every block, with the faster attention for the device."""
    fused = tokens.device.type != "cpu" or tokens.shape[1] > _PLAIN_ATTENTION_TOKENS
    for block in blocks:
        setattr(block.attn, "fused_attn", fused)  # noqa: B010 - timm's own switch, untyped
        tokens = block(tokens)
    return tokens


def initialise(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero bias, unit LayerNorm (MAE, appendix A.1)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
