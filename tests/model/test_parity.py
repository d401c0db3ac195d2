"""Our numbers against those of transformers, timm and lightly with the same weights and masks."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mae.model.artifact import random_encoder
from mae.model.autoencoder import Autoencoder, build_autoencoder, masked_loss
from mae.model.patches import gather_patches
from tests.model.test_autoencoder import model_params, noise
from tests.model.test_encoder import architecture

pytest.importorskip("transformers", reason="transformers is not installed")
peers = pytest.importorskip("benchmarks.mae_peers", reason="the benchmarks are not here")

IDS = torch.tensor([3, 14, 15])


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def made(**changes: Any) -> Autoencoder:
    """A square autoencoder whose every weight is drawn, so that none is a zero by chance."""
    params = model_params(**({"height": 24, "width": 24} | changes))
    autoencoder = build_autoencoder(params, changes.pop("channels", 3), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return autoencoder.eval()


@pytest.mark.parametrize("target", ["pixels", "normalized_pixels"])
@pytest.mark.parametrize("patch", [4, 8])
def test_transformers_gives_the_same_loss_prediction_and_encoding(target: str, patch: int) -> None:
    ours = made(target=target, patch=patch, depth=3, mask={"kind": "random", "ratio": 0.6})
    theirs = peers.hf_mae(ours).eval()
    images = noise(3, 3, 24, 24)
    outcome = ours(images, IDS, 0, 0)
    result = theirs(images, noise=peers.hf_noise(outcome.masking), output_hidden_states=True)
    loss = masked_loss(outcome)
    assert loss.item() == pytest.approx(result.loss.item(), rel=1e-5)
    hidden = gather_patches(result.logits, outcome.masking.hidden)
    rows = peers.pixels_last(outcome.prediction.movedim(-1, 0), channels=3).movedim(0, -1)
    assert relative(rows, hidden) < 1e-5
    encoded = ours.encoder.encode(images, outcome.masking.keep)
    model = theirs.vit(images, noise=peers.hf_noise(outcome.masking))
    assert relative(encoded, model.last_hidden_state) < 1e-5
    features = ours.encoder(images, outcome.masking.keep)
    assert relative(features.cls, model.last_hidden_state[:, 0]) < 1e-5
    assert relative(features.mean, model.last_hidden_state[:, 1:].mean(dim=1)) < 1e-5


def test_transformers_gives_the_same_gradients() -> None:
    ours = made()
    theirs = peers.hf_mae(ours)
    images = noise(3, 3, 24, 24)
    outcome = ours(images, IDS, 0, 0)
    masked_loss(outcome).backward()
    theirs(images, noise=peers.hf_noise(outcome.masking)).loss.backward()
    last = theirs.decoder.decoder_layers[-1]
    pairs = {
        "patch_embed": (
            ours.encoder.patch_embed.weight.grad,
            theirs.vit.embeddings.patch_embeddings.projection.weight.grad.flatten(1),
        ),
        "mask_token": (ours.decoder.mask_token.grad, theirs.decoder.mask_token.grad),
        "cls_token": (ours.encoder.cls_token.grad, theirs.vit.embeddings.cls_token.grad),
        "queries, keys and values": (
            ours.decoder.blocks[-1].attn.qkv.weight.grad,
            torch.cat([getattr(last.attention, f"{x}_proj").weight.grad for x in "qkv"]),
        ),
        "mlp": (ours.decoder.blocks[-1].mlp.fc1.weight.grad, last.mlp.fc1.weight.grad),
    }
    for name, (a, b) in pairs.items():
        assert relative(a, b) < 2e-5, name


def test_lightly_gives_the_same_loss() -> None:
    pytest.importorskip("lightly", reason="lightly is not installed")
    ours = made()
    images = noise(3, 3, 24, 24)
    outcome = ours(images, IDS, 0, 0)
    theirs = peers.LightlyMae(ours)(images, outcome.masking).item()
    assert masked_loss(outcome).item() == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(("height", "width", "patch"), [(16, 16, (4, 4)), (16, 40, (8, 4))])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_timm_gives_the_same_tokens(
    height: int, width: int, patch: tuple[int, int], positions: str, channels: int
) -> None:
    from timm.models.vision_transformer import VisionTransformer

    ours = random_encoder(
        architecture(
            height=height, width=width, patch=patch, positions=positions, channels=channels
        ),
        seed=1,
    )
    theirs = VisionTransformer(
        img_size=(height, width),
        patch_size=patch,
        in_chans=channels,
        embed_dim=32,
        depth=2,
        num_heads=4,
        num_classes=0,
    ).eval()
    weights = dict(ours.state_dict())
    weights.pop("positions", None)
    kernel = weights.pop("patch_embed.weight").reshape(32, channels, *patch)
    bias = weights.pop("patch_embed.bias")
    weights |= {"patch_embed.proj.weight": kernel, "patch_embed.proj.bias": bias}
    cls = torch.zeros(1, 1, 32)
    weights["pos_embed"] = torch.cat([cls, ours.positions.detach()[None]], dim=1)
    theirs.load_state_dict(weights)
    images = noise(2, channels, height, width)
    with torch.no_grad():
        tokens = theirs.forward_features(images)
        features = ours(images)
    assert relative(ours.encode(images), tokens) < 1e-5
    assert relative(features.cls, tokens[:, 0]) < 1e-5
    assert relative(features.mean, tokens[:, 1:].mean(dim=1)) < 1e-5
    assert features.patches is not None
    assert features.patches.shape == (2, 32, height // patch[0], width // patch[1])
    assert relative(features.patches.flatten(2).mT, tokens[:, 1:]) < 1e-5


def test_learned_positions_are_resampled_as_timm_does() -> None:
    from timm.layers import resample_abs_pos_embed

    from mae.model.positions import resample_positions

    table = noise(4 * 6, 8)
    for wanted in ((8, 12), (3, 5), (6, 4)):
        ours = resample_positions(table, (4, 6), wanted)
        theirs = resample_abs_pos_embed(table[None], list(wanted), [4, 6], num_prefix_tokens=0)
        assert ours.shape == (math.prod(wanted), 8)
        torch.testing.assert_close(ours, theirs[0], rtol=1e-5, atol=1e-5)
    assert resample_positions(table, (4, 6), (4, 6)) is table
