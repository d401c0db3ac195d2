from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae.model.autoencoder import build_autoencoder, masked_loss
from mae.model.patches import gather_patches, patchify
from tests.model.samples import model_params, noise


@settings(deadline=None, max_examples=12)
@given(st.sampled_from([1, 3, 4, 13]), st.sampled_from([4, (4, 6), (8, 3)]))
def test_predictions_are_for_the_hidden_patches_alone(channels: int, patch: Any) -> None:
    autoencoder = build_autoencoder(model_params(patch=patch), channels, 0)
    images, ids = noise(3, channels, 16, 24), torch.tensor([5, 6, 7])
    outcome = autoencoder(images, ids, seed=0, epoch=0)
    ph, pw = autoencoder.params.patch_size
    patches = (16 // ph) * (24 // pw)
    kept = autoencoder.params.mask.kept(patches)
    assert outcome.prediction.shape == (3, patches - kept, channels * ph * pw)
    hidden = gather_patches(patchify(images, (ph, pw)), outcome.masking.hidden)
    expected = (hidden - hidden.mean(-1, keepdim=True)) / (
        hidden.var(-1, keepdim=True) + 1e-6
    ).sqrt()
    torch.testing.assert_close(outcome.target, expected)
    loss = masked_loss(outcome)
    assert loss.item() == pytest.approx(
        ((outcome.prediction - expected) ** 2).mean().item(), rel=1e-5
    )


def test_the_prediction_never_sees_the_hidden_pixels() -> None:
    autoencoder = build_autoencoder(model_params(), 1, 0).eval()
    images, ids = noise(1, 1, 16, 24), torch.tensor([1])
    before = autoencoder(images, ids, 0, 0)
    mask = before.masking.as_mask()[0].reshape(4, 6)
    pixels = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
    images[0, 0][pixels] += 10
    after = autoencoder(images, ids, 0, 0)
    assert torch.equal(before.prediction, after.prediction)
    assert not torch.equal(before.target.mean(), (after.target * 2).mean())


def test_the_decoder_knows_the_place_of_each_hidden_patch() -> None:
    """Permuting the hidden patches permutes the predictions, and nothing else."""
    autoencoder = build_autoencoder(model_params(), 1, 0).eval()
    images, ids = noise(1, 1, 16, 24), torch.tensor([1])
    masking = autoencoder(images, ids, 0, 0).masking
    tokens = autoencoder.encoder.encode(images, masking.keep)
    straight = autoencoder.decoder(tokens, masking, (4, 6))
    turned = masking._replace(hidden=masking.hidden.flip(1))
    flipped = autoencoder.decoder(tokens, turned, (4, 6)).flip(1)
    torch.testing.assert_close(straight, flipped, rtol=1e-4, atol=1e-5)
    assert (straight[0, 0] - straight[0, 1]).abs().max() > 1e-3


def test_reconstruction_keeps_the_visible_patches() -> None:
    autoencoder = build_autoencoder(model_params(), 1, 0).eval()
    images = noise(2, 1, 16, 24)
    reconstruction, mask = autoencoder.reconstruct(images, torch.tensor([1, 2]), 0, 0)
    assert mask.shape == (2, 1, 16, 24)
    assert float(mask.float().mean()) == 0.75
    assert torch.equal(reconstruction[~mask], images[~mask])
    assert not torch.equal(reconstruction[mask], images[mask])


def test_it_learns_to_reconstruct() -> None:
    """Brightness differs by image and falls from left to right: both must be found out."""
    autoencoder = build_autoencoder(model_params(target="pixels"), 1, 0)
    brightness = torch.linspace(-1, 1, 16)[:, None, None, None]
    images = (brightness + torch.linspace(1, -1, 24)).expand(16, 1, 16, 24)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=3e-3)
    for step in range(100):
        loss = masked_loss(autoencoder(images, torch.arange(16), 0, step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05 * images.var().item()


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    autoencoder = build_autoencoder(model_params(), 1, 0)
    autoencoder(noise(1, 1, 16, 24), torch.tensor([1]), 0, 0)
    assert torch.equal(state, torch.get_rng_state())
