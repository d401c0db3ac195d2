"""Stacks of timm's transformer blocks, their initialisation, and the choice of attention kernel."""

from typing import Any

import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mae.model.linear import Linear

# Up to this many tokens a CPU runs matmul-softmax-matmul in bf16 faster than the fused kernel,
# whose backward is six times slower there; beyond it the quadratic memory costs more.
_PLAIN_ATTENTION_TOKENS = 512


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with the epsilon of the MAE reference code."""

    def __init__(self, width: int, **device_and_dtype: Any) -> None:
        super().__init__(width, eps=1e-6, **device_and_dtype)


def make_blocks(
    dim: int, depth: int, heads: int, mlp_ratio: float, drop_path: float = 0.0
) -> nn.ModuleList:
    """Return `depth` pre-norm blocks; drop path rises linearly to its full rate at the last."""
    blocks = nn.ModuleList(
        Block(dim, heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)
    )
    for module in blocks.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    set_drop_path(blocks, drop_path)
    return blocks


def set_drop_path(blocks: nn.ModuleList, rate: float) -> None:
    """Set drop path, rising linearly over the blocks to `rate`."""
    rates = torch.linspace(0, rate, len(blocks)).tolist()
    for block, block_rate in zip(blocks, rates, strict=True):
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(block_rate) if block_rate else nn.Identity())


def run_blocks(
    blocks: nn.ModuleList,
    tokens: Tensor,
    keys: Tensor | None = None,
    *,
    last: int | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """(N, T, D) -> (N, T, D), through every block, with the faster attention for the device.

    keys bool (N, T): the tokens that others may look at; None: all. last: return only the last so
    many tokens, which the last block then computes alone. checkpointing: compute each block again
    in the backward pass.
    """
    mask = None if keys is None else keys[:, None, None, :]
    fused = _fused_is_faster(tokens)
    for index, block in enumerate(blocks):
        setattr(block.attn, "fused_attn", fused)  # noqa: B010 - timm's own switch, untyped
        if last is not None and index + 1 == len(blocks):
            return _last_tokens(block, tokens, last, mask)
        if checkpointing and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, mask, use_reentrant=False)
        else:
            tokens = block(tokens, mask)
    return tokens if last is None else tokens[:, tokens.shape[1] - last :]


def _last_tokens(block: Any, tokens: Tensor, last: int, mask: Tensor | None) -> Tensor:
    """Return what `block` makes of the last tokens, (N, last, D), which look at all of them."""
    attn = block.attn
    qkv = attn.qkv(block.norm1(tokens)).unflatten(2, (3, attn.num_heads, attn.head_dim))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    first = tokens.shape[1] - last
    q = q[:, :, first:]
    if attn.fused_attn:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        scores = (q * attn.scale) @ k.mT
        scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
        mixed = scores.softmax(dim=-1) @ v
    tokens = tokens[:, first:] + block.drop_path1(attn.proj(mixed.transpose(1, 2).flatten(2)))
    return tokens + block.drop_path2(block.mlp(block.norm2(tokens)))


def _fused_is_faster(tokens: Tensor) -> bool:
    short = tokens.shape[1] <= _PLAIN_ATTENTION_TOKENS
    plain = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    return not (tokens.device.type == "cpu" and short and plain)


def initialise(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero bias, unit LayerNorm (MAE, appendix A.1)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
