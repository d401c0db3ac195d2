import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mae.errors import DataError
from mae.model.autoencoder import Autoencoder, masked_loss
from mae.model.convolutional import ConvolutionalAutoencoder
from mae.model.fitting import fit_target
from mae.model.losses import build_loss
from mae.model.methods import (
    Supervised,
    build_model,
    encoder_from_dict,
    model_from_dict,
    resolve_method,
)
from mae.model.noise import add_noise
from mae.model.patches import patchify
from mae.params import ModelParams
from tests.model.samples import model_params, noise

METHODS = ["mae", "autoencoder", "denoising", "simmim", "convolutional", "supervised"]


@pytest.mark.parametrize("method", METHODS)
def test_resolving_is_final_and_survives_json(method: str) -> None:
    resolved = resolve_method(model_params(method=method))
    assert resolved.method == method
    assert resolve_method(resolved) == resolved
    assert ModelParams.model_validate(json.loads(resolved.model_dump_json())) == resolved


def test_mae_is_left_as_it_is() -> None:
    assert resolve_method(model_params()) == model_params()


@pytest.mark.parametrize("method", ["autoencoder", "denoising"])
def test_the_classical_ones_hide_nothing_and_predict_all(method: str) -> None:
    params = model_params(method=method, mask={"kind": "block", "ratio": 0.5, "final_ratio": 0.6})
    resolved = resolve_method(params)
    assert (resolved.mask.ratio, resolved.mask.last_ratio, resolved.loss.over) == (0, 0, "all")
    assert (resolved.target, resolved.decoder) == (params.target, params.decoder)


def test_simmim_has_a_linear_head_and_learns_raw_pixels_in_l1() -> None:
    params = model_params(method="simmim", mask={"kind": "block", "ratio": 0.5})
    resolved = resolve_method(params)
    assert (resolved.decoder.depth, resolved.decoder.mask_tokens) == (0, "encoder")
    assert (resolved.target.kind, resolved.loss.kind, resolved.loss.over) == (
        "pixels",
        "l1",
        "hidden",
    )
    assert resolved.mask == params.mask


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("mae", Autoencoder),
        ("autoencoder", Autoencoder),
        ("denoising", Autoencoder),
        ("simmim", Autoencoder),
        ("convolutional", ConvolutionalAutoencoder),
        ("supervised", Supervised),
    ],
)
def test_every_method_is_built_and_built_again_from_files(
    method: str, kind: type, tmp_path: Path
) -> None:
    model = build_model(model_params(method=method), channels=3, classes=5, seed=0)
    assert isinstance(model, kind)
    again = model_from_dict(json.loads(json.dumps(model.to_dict())))
    assert isinstance(again, kind)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    encoder = encoder_from_dict(json.loads(json.dumps(model.encoder.architecture.to_dict())))
    encoder.load_state_dict(model.encoder.state_dict())
    images = noise(2, 3, 16, 24)
    for ours, theirs in zip(encoder.eval()(images), model.eval().encoder(images), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("method", ["autoencoder", "denoising"])
def test_all_is_shown_and_all_is_asked_for(method: str) -> None:
    model = build_model(model_params(method=method, noise=0.5), channels=1, classes=0, seed=0)
    assert isinstance(model, Autoencoder)
    images = noise(2, 1, 16, 24)
    outcome = model(images, torch.tensor([3, 4]), seed=0, epoch=0)
    assert outcome.masking.keep.shape == outcome.places.shape == (2, 24)
    truth = patchify(images, (4, 4)).gather(1, outcome.places[:, :, None].expand(-1, -1, 16))
    expected = (truth - truth.mean(-1, keepdim=True)) / (truth.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(outcome.target, expected)


def test_denoising_shows_noise_of_the_strength_that_is_asked_for() -> None:
    """The same weights, with and without noise: only what the encoder is shown differs."""
    images, ids = noise(2, 1, 16, 24), torch.tensor([3, 4])
    predictions = []
    for strength in (0.0, 0.5):
        params = model_params(method="denoising", noise=strength)
        model = build_model(params, channels=1, classes=0, seed=0).eval()
        predictions.append(model(images, ids, seed=0, epoch=0).prediction)
        if strength:
            shown = add_noise(images, ids, 0, 0, strength)
            clean = build_model(model_params(method="denoising", noise=0.0), 1, 0, 0).eval()
            assert torch.equal(clean(shown, ids, seed=0, epoch=0).prediction, predictions[-1])
    assert not torch.allclose(*predictions, atol=1e-3)


@pytest.mark.parametrize("method", ["autoencoder", "denoising", "simmim"])
def test_it_learns(method: str) -> None:
    params = model_params(method=method, target={"kind": "pixels"}, noise=0.3)
    model = build_model(params, channels=1, classes=0, seed=0)
    assert isinstance(model, Autoencoder)
    loss = build_loss(model.params.loss, model.params.target, 1, (4, 4))
    brightness = torch.linspace(-1, 1, 16)[:, None, None, None]
    images = (brightness + torch.linspace(1, -1, 24)).expand(16, 1, 16, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        total = masked_loss(model(images, torch.arange(16), 0, step), loss)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])


@pytest.mark.parametrize("kind", ["pca", "tokens"])
def test_fitted_targets_are_saved_with_the_model(kind: str, tmp_path: Path) -> None:
    params = model_params(target={"kind": kind, "components": 4, "codes": 6})
    images, ids = noise(8, 1, 16, 24), torch.arange(8)
    fitted = fit_target(params.target, [patchify(images, (4, 4))], seed=0)
    model = build_model(params, 1, 0, 0, fitted)
    assert isinstance(model, Autoencoder)
    outcome = model(images, ids, seed=0, epoch=0)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    again = model_from_dict(json.loads(json.dumps(model.to_dict())))
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(again(images, ids, seed=0, epoch=0).target, outcome.target)
    loss = build_loss(params.loss, params.target, 1, (4, 4))
    masked_loss(outcome, loss).backward()
    assert all(p.grad is not None for p in model.decoder.parameters())
    # Knowing nothing costs 1, or the logarithm of the number of codes.
    expected = math.log(6) if kind == "tokens" else 1
    nothing = outcome._replace(prediction=torch.zeros_like(outcome.prediction))
    assert masked_loss(nothing, loss).item() == pytest.approx(expected, rel=0.15)


def test_supervised_learns_labels_by_cross_entropy() -> None:
    model = build_model(model_params(method="supervised"), channels=1, classes=3, seed=0)
    assert isinstance(model, Supervised)
    images, labels = noise(4, 1, 16, 24), torch.tensor([0, 2, 1, 2])
    expected = torch.nn.functional.cross_entropy(model(images), labels)
    torch.testing.assert_close(model.loss(images, labels), expected)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model.loss(images, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(model(images).argmax(dim=1), labels)


def test_unlabelled_images_count_as_nothing_to_learn() -> None:
    model = build_model(model_params(method="supervised"), channels=1, classes=3, seed=0)
    assert isinstance(model, Supervised)
    images = noise(4, 1, 16, 24)
    some = model.loss(images, torch.tensor([1, -1, 2, -1]))
    torch.testing.assert_close(2 * some, model.loss(images[[0, 2]], torch.tensor([1, 2])))
    none = model.loss(images, torch.full((4,), -1))
    none.backward()
    assert none.item() == 0


def test_supervised_weights_are_a_function_of_the_seed() -> None:
    state = torch.get_rng_state()
    heads = [
        build_model(model_params(method="supervised"), 1, 3, seed).state_dict()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(state, torch.get_rng_state())
    for name in ("classifier.head.weight", "classifier.encoder.blocks.0.attn.qkv.weight"):
        assert torch.equal(heads[0][name], heads[1][name])
        assert not torch.equal(heads[0][name], heads[2][name])


def test_supervised_without_classes_is_refused() -> None:
    with pytest.raises(DataError, match="0 classes"):
        build_model(model_params(method="supervised"), channels=1, classes=0, seed=0)
