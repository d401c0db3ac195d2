import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from mae.model.artifact import random_encoder
from mae.model.encoder import Architecture, Encoder


def architecture(**changes: object) -> Architecture:
    values = {
        "channels": 3,
        "height": 16,
        "width": 24,
        "patch": (4, 8),
        "dim": 32,
        "depth": 2,
        "heads": 4,
        "mlp_ratio": 4.0,
    }
    return Architecture(**(values | changes))  # type: ignore[arg-type]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 3, 4, 13]), st.integers(1, 4), st.integers(1, 4))
def test_keeping_every_patch_equals_keeping_by_default(channels: int, hp: int, wp: int) -> None:
    encoder = random_encoder(architecture(channels=channels), 0)
    images = noise(2, channels, hp * 4, wp * 8)
    whole = encoder(images)
    assert whole.patches.shape == (2, 32, hp, wp)
    kept = encoder(images, torch.arange(hp * wp).expand(2, -1))
    torch.testing.assert_close(kept.cls, whole.cls, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept.mean, whole.mean, rtol=1e-5, atol=1e-5)
    assert kept.patches is None
    torch.testing.assert_close(whole.patches.mean(dim=(2, 3)), whole.mean, rtol=1e-5, atol=1e-5)


def test_hidden_pixels_change_nothing() -> None:
    encoder = random_encoder(architecture(), 0)
    images = noise(1, 3, 16, 24)
    keep = torch.tensor([[0, 5, 7]])
    before = encoder(images, keep)
    images[:, :, 8:12, 0:8] = 99.0  # patch 6, which is not kept
    assert torch.equal(before.cls, encoder(images, keep).cls)


def test_outputs_equal_timms_transformer_with_the_same_weights() -> None:
    a = architecture(height=16, width=16, patch=(4, 4))
    ours = random_encoder(a, 1)
    theirs = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=0
    ).eval()
    weights = {
        name.replace("patch_embed.", "patch_embed.proj."): tensor
        for name, tensor in ours.state_dict().items()
    }
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].reshape(32, 3, 4, 4)
    cls_position = torch.zeros(1, 1, 32)
    weights["pos_embed"] = torch.cat([cls_position, ours.positions[None]], dim=1)
    theirs.load_state_dict(weights)
    images = noise(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.encode(images), theirs.forward_features(images), rtol=1e-5, atol=1e-5
        )


def test_plain_and_fused_attention_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = random_encoder(architecture(), 0)
    images = noise(2, 3, 16, 24)
    plain = encoder(images)
    monkeypatch.setattr("mae.model.blocks._PLAIN_ATTENTION_TOKENS", 0)
    fused = encoder(images)
    torch.testing.assert_close(plain.cls, fused.cls, rtol=1e-5, atol=1e-5)


def test_initial_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, same, other = (random_encoder(architecture(), seed) for seed in (0, 0, 1))
    assert torch.equal(first.patch_embed.weight, same.patch_embed.weight)
    assert not torch.equal(first.patch_embed.weight, other.patch_embed.weight)
    assert torch.equal(state, torch.get_rng_state())


def test_initialisation_is_the_papers() -> None:
    encoder = random_encoder(architecture(dim=256, heads=8), 0)
    fan_in, fan_out = 3 * 4 * 8, 256
    bound = (6 / (fan_in + fan_out)) ** 0.5
    weight = encoder.patch_embed.weight.detach()
    assert weight.abs().max() <= bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert encoder.cls_token.detach().std() == pytest.approx(0.02, rel=0.2)
    assert encoder.blocks[0].norm1.eps == 1e-6


def test_drop_path_rises_to_its_rate() -> None:
    encoder = Encoder(architecture(depth=3), drop_path=0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    encoder.set_drop_path(0.0)
    images = noise(2, 3, 16, 24)
    encoder.train()
    assert torch.equal(encoder(images).cls, encoder(images).cls)


def test_wrong_channels_are_refused() -> None:
    encoder = random_encoder(architecture(), 0)
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        encoder(noise(1, 4, 16, 24))
