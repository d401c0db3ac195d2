"""Networks of others with weights made up here, and what both sides are fed."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mae.model.masking import Masking
from mae.model.positions import sincos_positions

Side = tuple[int, int]


def stir(module: nn.Module, *, spare: tuple[str, ...] = ()) -> nn.Module:
    """Give every parameter but those whose names end in `spare` values like trained ones'."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name.endswith(spare or "\0"):
                continue
            drawn = torch.randn(value.shape, generator=generator)
            is_gain = "norm" in name and name.endswith("weight")
            value.copy_(1 + 0.2 * drawn if is_gain else 0.15 * drawn)
    return module.eval()


def images_of(channels: int, height: int, width: int, count: int = 3) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected number."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def noise_for(masking: Masking) -> Tensor:
    """Noise (N, L) whose order keeps the patches that `masking` keeps."""
    order = torch.cat([masking.keep, masking.hidden], dim=1)
    ranks = torch.arange(order.shape[1], dtype=torch.float32).expand(order.shape)
    return torch.zeros(order.shape).scatter(1, order, ranks)


def hf_config(**changes: Any) -> Any:
    from transformers import ViTMAEConfig

    values = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": 24,
        "patch_size": 4,
        "num_channels": 3,
        "layer_norm_eps": 1e-6,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 64,
        "mask_ratio": 0.75,
        "norm_pix_loss": True,
    }
    return ViTMAEConfig(**(values | changes), attn_implementation="eager")


def hf_mae(folder: Path | None = None, **changes: Any) -> Any:
    """A ViTMAEForPreTraining with its fixed positions, saved to `folder`."""
    from transformers import ViTMAEForPreTraining

    model = ViTMAEForPreTraining(hf_config(**changes))
    stir(model, spare=("position_embeddings", "decoder_pos_embed"))
    if folder is not None:
        model.save_pretrained(folder)
    return model


def timm_vit(**changes: Any) -> Any:
    """timm's ViT as the MAE release uses it: fixed positions, no classes."""
    values = {
        "img_size": (16, 24),
        "patch_size": 4,
        "in_chans": 3,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "mlp_ratio": 3,
        "num_classes": 0,
        "pretrained": False,
    }
    model = stir(timm.create_model("vit_tiny_patch16_224", **(values | changes)))
    if not changes.get("num_classes"):
        with torch.no_grad():
            grid = model.patch_embed.grid_size
            model.pos_embed.zero_()[:, 1:] = sincos_positions(model.embed_dim, grid)
    return model


class ReferenceMAE(nn.Module):
    """The network of the MAE release, under its names, on any grid and channels.

    Written for these tests from the paper and the release's key names: the decoder puts the
    tokens back in image order, and a patch's pixels are predicted in (ph, pw, C) order.
    """

    def __init__(
        self,
        image: Side,
        patch: Side,
        channels: int,
        *,
        dim: int = 32,
        depth: int = 2,
        heads: int = 4,
        width: int = 16,
        decoder_depth: int = 2,
        decoder_heads: int = 2,
    ) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        grid = (image[0] // patch[0], image[1] // patch[1])

        def block(size: int, count: int) -> Block:
            return Block(size, count, 4.0, qkv_bias=True, norm_layer=_norm)

        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(_with_class(sincos_positions(dim, grid)))
        self.patch_embed = PatchEmbed(image, patch, channels, dim)
        self.blocks = nn.ModuleList(block(dim, heads) for _ in range(depth))
        self.norm = _norm(dim)
        self.decoder_embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(_with_class(sincos_positions(width, grid)))
        self.decoder_blocks = nn.ModuleList(
            block(width, decoder_heads) for _ in range(decoder_depth)
        )
        self.decoder_norm = _norm(width)
        self.decoder_pred = nn.Linear(width, patch[0] * patch[1] * channels)
        stir(self, spare=("pos_embed",))

    def forward(self, images: Tensor, masking: Masking) -> Tensor:
        """Predict every patch: (N, L, ph * pw * C)."""
        everyone = torch.arange(len(images))[:, None]
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([first, tokens[everyone, masking.keep]], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.decoder_embed(self.norm(tokens))
        patches = masking.keep.shape[1] + masking.hidden.shape[1]
        sequence = self.mask_token.repeat(len(images), patches, 1)
        sequence[everyone, masking.keep] = tokens[:, 1:]
        tokens = torch.cat([tokens[:, :1], sequence], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]

    def loss(self, images: Tensor, masking: Masking) -> Tensor:
        """Mean squared error at the hidden patches, of normalised pixels."""
        n, c, height, width = images.shape
        ph, pw = self.patch
        cut = images.reshape(n, c, height // ph, ph, width // pw, pw)
        target = torch.einsum("nchpwq->nhwpqc", cut).reshape(n, -1, ph * pw * c)
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (var + 1e-6) ** 0.5
        squares = (self(images, masking) - target).square().mean(-1)
        mask = masking.as_mask().float()
        return (squares * mask).sum() / mask.sum()


def _norm(size: int, **more: Any) -> nn.LayerNorm:
    return nn.LayerNorm(size, eps=1e-6, **more)


def _with_class(positions: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, positions.shape[1]), positions])[None]
