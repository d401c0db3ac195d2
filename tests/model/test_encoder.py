import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae.model import blocks
from mae.model.artifact import random_encoder
from mae.model.blocks import run_blocks
from mae.model.encoder import Architecture, Encoder
from tests.model.samples import noise


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


def test_plain_and_fused_attention_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = random_encoder(architecture(), 0)
    images = noise(2, 3, 16, 24)
    results = []
    for fused in (True, False):
        monkeypatch.setattr(blocks, "_fused_is_faster", lambda tokens, fused=fused: fused)
        results.append(encoder(images).cls)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_last_tokens_alone_are_those_of_all(
    monkeypatch: pytest.MonkeyPatch, fused: bool, masked: bool
) -> None:
    monkeypatch.setattr(blocks, "_fused_is_faster", lambda tokens: fused)
    stack = random_encoder(architecture(), 0).blocks
    tokens = noise(2, 7, 32)
    keys = noise(2, 7) > -0.5 if masked else None
    whole = run_blocks(stack, tokens, keys)
    for last in (0, 1, 5, 7):
        part = run_blocks(stack, tokens, keys, last=last)
        torch.testing.assert_close(part, whole[:, 7 - last :], rtol=1e-5, atol=1e-5)


def test_tokens_that_may_not_be_looked_at_change_nothing() -> None:
    encoder = random_encoder(architecture(), 0)
    tokens, keys = noise(1, 5, 32), torch.tensor([[True, True, False, True, False]])
    before = encoder.transform(tokens, keys)
    tokens[:, [2, 4]] = 7.0
    after = encoder.transform(tokens, keys)
    seen = [0, 1, 2, 4]  # the class token comes first
    assert torch.equal(before[:, seen], after[:, seen])
    alone = encoder.transform(tokens[:, [0, 1, 3]])
    torch.testing.assert_close(after[:, seen], alone, rtol=1e-5, atol=1e-5)


def test_checkpointing_changes_memory_and_not_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = random_encoder(architecture(), 0).train()
        encoder.set_drop_path(0.5)
        encoder.checkpointing = checkpointing
        torch.manual_seed(3)
        encoder(noise(4, 3, 16, 24)).mean.square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_checkpointing_keeps_less_for_the_way_back() -> None:
    kept = []
    for checkpointing in (False, True):
        encoder = random_encoder(architecture(), 0).train()
        encoder.checkpointing = checkpointing
        saved: list[int] = []

        def pack(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            encoder(noise(4, 3, 16, 24)).mean.sum()
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 3


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 17))
def test_padding_is_zeros_below_and_to_the_right(height: int, width: int) -> None:
    a = architecture(height=height, width=width, pad=True)
    assert a.grid == (-(-height // 4), -(-width // 8))
    encoder = random_encoder(a, 0)
    images = noise(1, 3, height, width)
    by_hand = torch.zeros(1, 3, a.grid[0] * 4, a.grid[1] * 8)
    by_hand[..., :height, :width] = images
    padded, whole = encoder(images), encoder(by_hand)
    assert padded.patches.shape == (1, 32, *a.grid)
    assert torch.equal(padded.patches, whole.patches)


def test_without_padding_such_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"15 x 24 .* patches of 4 x 8: .* or set model.pad"):
        random_encoder(architecture(), 0)(noise(1, 3, 15, 24))


def test_learned_positions_follow_the_grid() -> None:
    encoder = random_encoder(architecture(positions="learned"), 0)
    assert "positions" in encoder.state_dict()
    assert "positions" not in random_encoder(architecture(), 0).state_dict()
    assert encoder.positions.detach().std() == pytest.approx(0.02, rel=0.2)
    assert encoder(noise(1, 3, 32, 40)).patches.shape == (1, 32, 8, 5)
    # The bright half stays in its place: a column of the table, twice as fine, not a line.
    with torch.no_grad():
        encoder.positions.zero_()[1::3] = 1.0  # the middle of three columns
    finer = encoder.positions_for((8, 9))[0].unflatten(0, (8, 9))
    assert (finer[:, 4] > 0.9).all() and (finer[:, 0].abs() < 0.2).all()


def test_a_norm_after_pooling() -> None:
    plain, pooled = (random_encoder(architecture(pooled_norm=p), 0) for p in (False, True))
    images = noise(2, 3, 16, 24)
    tokens = pooled.encode(images)
    torch.testing.assert_close(plain.encode(images), pooled.norm(tokens))
    torch.testing.assert_close(pooled(images).mean, pooled.norm(tokens[:, 1:].mean(dim=1)))


def test_layers_hold_every_parameter_but_the_last_norm_once() -> None:
    encoder = random_encoder(architecture(positions="learned"), 0)
    layers = encoder.layers()
    assert len(layers) == 3
    listed = [id(p) for layer in layers for p in layer]
    norm = [id(p) for p in encoder.norm.parameters()]
    assert sorted(listed + norm) == sorted(id(p) for p in encoder.parameters())


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
