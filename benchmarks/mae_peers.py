"""The same masked autoencoder built of transformers' and of lightly's parts, with our weights.

Square images and patches only: that is what they take. `ours` must be the paper's autoencoder.
"""

import math
import warnings

import torch
from torch import Tensor, nn

from mae.model.autoencoder import Autoencoder
from mae.model.masking import Masking

Weights = dict[str, Tensor]


def hf_mae(ours: Autoencoder) -> nn.Module:
    """Return transformers' ViTMAEForPreTraining, with its default (fused) attention."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    a, decoder = ours.encoder.architecture, ours.params.decoder
    config = ViTMAEConfig(
        image_size=a.height,
        patch_size=a.patch[0],
        num_channels=a.channels,
        hidden_size=a.dim,
        num_hidden_layers=a.depth,
        num_attention_heads=a.heads,
        intermediate_size=int(a.dim * a.mlp_ratio),
        layer_norm_eps=1e-6,
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads,
        decoder_intermediate_size=4 * decoder.width,
        mask_ratio=ours.params.mask.ratio,
        norm_pix_loss=ours.params.target.kind == "normalized_pixels",
    )
    model = ViTMAEForPreTraining(config)
    model.load_state_dict(_hf_weights(ours))
    return model


def hf_loss(model: nn.Module, images: Tensor, masking: Masking) -> Tensor:
    """Return transformers' loss under our masks: its noise sorts the visible patches first."""
    return model(images, noise=hf_noise(masking)).loss


def hf_noise(masking: Masking) -> Tensor:
    """Return noise (N, L) whose argsort is our visible patches, then our hidden ones."""
    return torch.argsort(torch.cat([masking.keep, masking.hidden], dim=1), dim=1).float()


def _hf_weights(ours: Autoencoder) -> Weights:
    encoder, decoder = ours.encoder.state_dict(), ours.decoder.state_dict()
    a = ours.encoder.architecture
    weights = {
        "vit.embeddings.cls_token": encoder["cls_token"],
        "vit.embeddings.position_embeddings": _with_class(ours.encoder.positions),
        "vit.embeddings.patch_embeddings.projection.weight": _as_convolution(ours),
        "vit.embeddings.patch_embeddings.projection.bias": encoder["patch_embed.bias"],
        "decoder.mask_token": decoder["mask_token"],
        "decoder.decoder_pos_embed": _with_class(ours.decoder.positions),
    }
    for kind in ("weight", "bias"):
        weights[f"vit.layernorm.{kind}"] = encoder[f"norm.{kind}"]
        weights[f"decoder.decoder_embed.{kind}"] = decoder[f"embed.{kind}"]
        weights[f"decoder.decoder_norm.{kind}"] = decoder[f"norm.{kind}"]
        predict = pixels_last(decoder[f"predict.{kind}"], a.channels)
        weights[f"decoder.decoder_pred.{kind}"] = predict
    weights |= _hf_blocks(encoder, "vit.layers", a.depth)
    weights |= _hf_blocks(decoder, "decoder.decoder_layers", ours.params.decoder.depth)
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def _hf_blocks(ours: Weights, prefix: str, depth: int) -> Weights:
    names = {
        "layernorm_before": "norm1",
        "attention.o_proj": "attn.proj",
        "layernorm_after": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    weights = {}
    for index in range(depth):
        for kind in ("weight", "bias"):
            for theirs, own in names.items():
                weights[f"{prefix}.{index}.{theirs}.{kind}"] = ours[f"blocks.{index}.{own}.{kind}"]
            parts = ours[f"blocks.{index}.attn.qkv.{kind}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                weights[f"{prefix}.{index}.attention.{letter}_proj.{kind}"] = part
    return weights


class LightlyMae(nn.Module):
    """Lightly's example of MAE (examples/pytorch/mae.py), with the per-patch normalised target."""

    def __init__(self, ours: Autoencoder) -> None:
        from lightly.models.modules import MaskedVisionTransformerTIMM
        from lightly.models.modules.masked_autoencoder_timm import MAEDecoderTIMM
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        a, decoder = ours.encoder.architecture, ours.params.decoder
        self.patch, self.ratio = a.patch[0], ours.params.mask.ratio
        self.normalized = ours.params.target.kind == "normalized_pixels"
        vit = VisionTransformer(
            img_size=a.height,
            patch_size=self.patch,
            in_chans=a.channels,
            embed_dim=a.dim,
            depth=a.depth,
            num_heads=a.heads,
            mlp_ratio=a.mlp_ratio,
            num_classes=0,
        )
        vit.load_state_dict(_timm_weights(ours))
        self.backbone = MaskedVisionTransformerTIMM(
            vit, weight_initialization="skip", pos_embed_initialization="skip"
        )
        self.backbone.mask_token.requires_grad_(False)  # its encoder sees visible patches alone
        vit.pos_embed.requires_grad_(False)
        self.sequence_length = self.backbone.sequence_length
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.decoder = MAEDecoderTIMM(
                num_patches=math.prod(a.grid),
                patch_size=self.patch,
                in_chans=a.channels,
                embed_dim=a.dim,
                decoder_embed_dim=decoder.width,
                decoder_depth=decoder.depth,
                decoder_num_heads=decoder.heads,
            )
        self.decoder.load_state_dict(_lightly_decoder_weights(ours))

    def forward(self, images: Tensor, masking: Masking | None) -> Tensor:
        """Return the loss, under masks of lightly's own where none are given."""
        from lightly.models import utils

        n = len(images)
        if masking is None:
            keep, hidden = utils.random_token_mask(
                (n, self.sequence_length), mask_ratio=self.ratio, device=images.device
            )
        else:
            cls = torch.zeros(n, 1, dtype=torch.int64, device=images.device)
            keep, hidden = torch.cat([cls, masking.keep + 1], dim=1), masking.hidden + 1
        encoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (n, self.sequence_length))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        predicted = self.decoder.predict(utils.get_at_index(self.decoder.decode(tokens), hidden))
        target = utils.get_at_index(utils.patchify(images, self.patch), hidden - 1)
        if self.normalized:
            variance = target.var(dim=-1, keepdim=True)
            target = (target - target.mean(dim=-1, keepdim=True)) / (variance + 1e-6).sqrt()
        return nn.functional.mse_loss(predicted.float(), target)


def _timm_weights(ours: Autoencoder) -> Weights:
    weights = dict(ours.encoder.state_dict())
    weights["patch_embed.proj.weight"] = _as_convolution(ours)
    weights["patch_embed.proj.bias"] = weights.pop("patch_embed.bias")
    del weights["patch_embed.weight"]
    return weights | {"pos_embed": _with_class(ours.encoder.positions)}


def _lightly_decoder_weights(ours: Autoencoder) -> Weights:
    channels = ours.encoder.architecture.channels
    weights = {"decoder_pos_embed": _with_class(ours.decoder.positions)}
    for name, tensor in ours.decoder.state_dict().items():
        if name.startswith("predict."):
            kind = name.removeprefix("predict.")
            weights[f"decoder_pred.{kind}"] = pixels_last(tensor, channels)
        elif name == "mask_token":
            weights[name] = tensor
        else:
            weights[f"decoder_{name}"] = tensor
    return weights


def _with_class(positions: Tensor) -> Tensor:
    """Put a zero for the class token before positions (L, D): (1, 1 + L, D)."""
    return nn.functional.pad(positions, (0, 0, 1, 0))[None]


def _as_convolution(ours: Autoencoder) -> Tensor:
    a = ours.encoder.architecture
    return ours.encoder.state_dict()["patch_embed.weight"].reshape(a.dim, a.channels, *a.patch)


def pixels_last(rows: Tensor, channels: int) -> Tensor:
    """Reorder the rows of a head from our (C, ph, pw) to their (ph, pw, C)."""
    return rows.reshape(channels, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)
