import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae.errors import ParamsError
from mae.model.convolutional import (
    ConvolutionalArchitecture,
    ConvolutionalAutoencoder,
    build_convolutional,
)
from mae.model.losses import build_loss
from mae.params import LossParams, ModelParams, TargetParams
from tests.model.samples import noise
from tests.model.test_methods import model_params

PIXELS = TargetParams(kind="pixels")


def params(**changes: object) -> ModelParams:
    return model_params(method="convolutional", **changes)


@given(channels=st.sampled_from([1, 3, 4, 13]), down=st.integers(1, 4), across=st.integers(1, 4))
@settings(deadline=None, max_examples=12)
def test_features_and_reconstructions_of_any_shape(channels: int, down: int, across: int) -> None:
    model = build_convolutional(params(height=8 * down, width=8 * across), channels, seed=0)
    images = noise(2, channels, 8 * down, 8 * across)
    assert model(images).shape == images.shape
    features = model.encoder(images)
    assert model.encoder.architecture.grid == (down, across)
    assert features.patches is not None and features.patches.shape == (2, 32, down, across)
    torch.testing.assert_close(features.mean, features.patches.flatten(2).mean(2))
    assert torch.equal(features.cls, features.mean)


def test_a_cell_of_the_code_sees_its_own_surroundings_only() -> None:
    """Where is kept: a change in one corner moves the features there and nowhere far away."""
    encoder = build_convolutional(params(height=64, width=96), 1, seed=0).encoder
    images = noise(1, 1, 64, 96)
    changed = images.clone()
    changed[..., :8, :8] += 1
    moved = (encoder(images).patches - encoder(changed).patches).abs().sum(1)[0] > 1e-7
    assert moved[0, 0] and not moved[3:].any() and not moved[:, 3:].any()


@pytest.mark.parametrize("kind", ["mse", "l1", "frequency"])
def test_the_loss_is_over_all_pixels(kind: str) -> None:
    model = build_convolutional(params(), 3, seed=0)
    images = noise(2, 3, 16, 24)
    loss = build_loss(
        LossParams.model_validate({"kind": kind, "alpha": 0.0}),
        PIXELS,
        3,
        model.encoder.architecture.patch,
    )
    residual = model(images) - images
    expected = residual.abs().mean() if kind == "l1" else residual.square().mean()
    torch.testing.assert_close(model.loss(images, loss), expected)


def test_it_learns_to_reconstruct() -> None:
    model = build_convolutional(params(), 1, seed=0)
    brightness = torch.linspace(-1, 1, 16)[:, None, None, None]
    images = (brightness + torch.linspace(1, -1, 24)).expand(16, 1, 16, 24)
    loss = build_loss(LossParams(), PIXELS, 1, (8, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        total = model.loss(images, loss)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert total.item() < 0.05 * images.var().item()
    reconstruction, mask = model.reconstruct(images, torch.arange(16), 0, 0)
    assert mask.shape == (16, 1, 16, 24) and not mask.any()
    assert (reconstruction - images).square().mean() < 0.05 * images.var()


def test_weights_are_a_function_of_the_seed() -> None:
    state = torch.get_rng_state()
    first, again, other = (build_convolutional(params(), 1, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    weights = [model.encoder.blocks[0][0].weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_it_is_built_again_from_json() -> None:
    model = build_convolutional(params(), 4, seed=0)
    again = ConvolutionalAutoencoder.from_dict(json.loads(json.dumps(model.to_dict())))
    again.load_state_dict(model.state_dict())
    images = noise(1, 4, 16, 24)
    assert torch.equal(again(images), model(images))
    architecture = json.loads(json.dumps(model.encoder.architecture.to_dict()))
    found = ConvolutionalArchitecture.from_dict(architecture)
    assert found == model.encoder.architecture


def test_layers_hold_every_parameter_once() -> None:
    encoder = build_convolutional(params(), 1, seed=0).encoder
    held = [id(p) for layer in encoder.layers() for p in layer]
    assert sorted(held) == sorted(id(p) for p in encoder.parameters())


def test_sides_and_channels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ParamsError, match="they are 20 x 24"):
        build_convolutional(params(height=20), 1, seed=0)
    encoder = build_convolutional(params(), 1, seed=0).encoder
    with pytest.raises(ParamsError, match="16 x 28"):
        encoder(noise(1, 1, 16, 28))
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\)"):
        encoder(noise(1, 3, 16, 24))
