import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor

from mae.errors import CheckpointError, ParamsError
from mae.model.fitting import fit_target
from mae.model.targets import Target, build_target
from mae.params import TargetParams
from tests.model.samples import noise


def correlated(n: int, values: int) -> Tensor:
    return noise(n, values) @ noise(values, values, seed=1) + 3 * noise(values, seed=2)


def fitted_target(kind: str, patches: Tensor, **choices: int) -> Target:
    params = TargetParams.model_validate({"kind": kind, **choices})
    return build_target(params, patches.shape[-1], fit_target(params, [patches], seed=0))


def test_pixels_are_the_very_pixels() -> None:
    patches = noise(2, 5, 12)
    target = build_target(TargetParams(kind="pixels"), 12)
    assert target.dim == 12
    assert torch.equal(target(patches), patches)
    assert torch.equal(target.to_pixels(patches, torch.zeros_like(patches)), patches)


@given(values=st.integers(2, 40), spread=st.floats(0.01, 100))
@settings(deadline=None, max_examples=20)
def test_normalised_pixels_against_numpy(values: int, spread: float) -> None:
    patches = noise(2, 3, values) * spread + 5
    target = build_target(TargetParams(kind="normalized_pixels"), values)
    array = patches.double().numpy()
    mean = array.mean(-1, keepdims=True)
    expected = (array - mean) / np.sqrt(array.var(-1, keepdims=True, ddof=1) + 1e-6)
    np.testing.assert_allclose(target(patches).numpy(), expected, rtol=2e-3, atol=2e-3)
    back = target.to_pixels(target(patches), patches)
    torch.testing.assert_close(back, patches, rtol=1e-3, atol=1e-3)


def test_normalised_pixels_keep_their_bits() -> None:
    """The formula of runs that exist already: another rounding would change their weights."""
    patches = noise(4, 7, 48)
    mean = patches.mean(dim=-1, keepdim=True)
    expected = (patches - mean) / (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    assert torch.equal(build_target(TargetParams(kind="normalized_pixels"), 48)(patches), expected)


def test_a_flat_patch_gives_no_infinity() -> None:
    target = build_target(TargetParams(kind="normalized_pixels"), 16)
    assert torch.isfinite(target(torch.full((1, 2, 16), 7.0))).all()


def test_one_value_cannot_be_normalised() -> None:
    with pytest.raises(ParamsError, match="one value"):
        build_target(TargetParams(kind="normalized_pixels"), 1)


def test_principal_components_against_sklearn() -> None:
    patches = correlated(400, 12)
    target = fitted_target("pca", patches, components=5)
    oracle = PCA(5, svd_solver="full").fit(patches.double().numpy())
    coefficients = target(patches[None])[0].double().numpy()
    expected = oracle.transform(patches.double().numpy())
    expected /= np.sqrt(oracle.explained_variance_.mean())
    signs = np.sign((coefficients * expected).sum(axis=0))
    np.testing.assert_allclose(coefficients, expected * signs, rtol=1e-3, atol=1e-4)
    assert coefficients.var(axis=0, ddof=1).mean() == pytest.approx(1, rel=1e-4)
    pixels = target.to_pixels(target(patches[None]), patches[None])[0].double().numpy()
    wanted = oracle.inverse_transform(oracle.transform(patches.double().numpy()))
    np.testing.assert_allclose(pixels, wanted, rtol=1e-3, atol=1e-3)


def test_all_components_lead_back_to_the_patch() -> None:
    patches = correlated(100, 8)
    target = fitted_target("pca", patches, components=8)
    pixels = target.to_pixels(target(patches[None]), torch.zeros(1, 100, 8))
    torch.testing.assert_close(pixels[0], patches, rtol=1e-4, atol=1e-4)


def test_tokens_are_the_nearest_codes() -> None:
    patches = noise(300, 6) + 100
    target = fitted_target("tokens", patches, codes=9)
    assert target.discrete and target.dim == 9
    tokens = target(patches.reshape(3, 100, 6))
    assert tokens.dtype == torch.int64
    codebook = target.get_buffer("codebook")
    distances = torch.cdist(patches.double(), codebook.double())
    assert torch.equal(tokens.flatten(), distances.argmin(dim=1))
    assert torch.equal(target(codebook[None])[0], torch.arange(9))
    logits = torch.nn.functional.one_hot(tokens, 9).float()
    expected = codebook[tokens.flatten()].reshape(3, 100, 6)
    assert torch.equal(target.to_pixels(logits, patches), expected)


@pytest.mark.parametrize("kind", ["pca", "tokens"])
def test_autocast_changes_no_target(kind: str) -> None:
    patches = correlated(200, 12)
    target = fitted_target(kind, patches, components=4, codes=8)
    plain = target(patches[None])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(target(patches[None]), plain)


@pytest.mark.parametrize("kind", ["pca", "tokens"])
def test_what_was_fitted_travels_with_the_state_dict(kind: str) -> None:
    patches = correlated(200, 12)
    target = fitted_target(kind, patches, components=4, codes=8)
    params = TargetParams.model_validate({"kind": kind, "components": 4, "codes": 8})
    whole = torch.nn.ModuleDict({"target": build_target(params, 12)})
    with pytest.raises(CheckpointError, match="neither fitted nor loaded"):
        whole["target"](patches[None])
    whole.load_state_dict({f"target.{k}": v for k, v in target.state_dict().items()})
    assert torch.equal(whole["target"](patches[None]), target(patches[None]))
    assert torch.equal(copy.deepcopy(whole)["target"](patches[None]), target(patches[None]))


def test_pixel_targets_have_nothing_to_save() -> None:
    for kind in ("pixels", "normalized_pixels"):
        params = TargetParams.model_validate({"kind": kind})
        assert not build_target(params, 8).state_dict()
        assert fit_target(params, iter(lambda: pytest.fail("was read"), None), seed=0) is None


def test_a_fit_of_other_parameters_is_refused() -> None:
    fitted = fit_target(TargetParams(kind="pca", components=3), [correlated(50, 8)], seed=0)
    with pytest.raises(CheckpointError, match="fit it again"):
        build_target(TargetParams(kind="pca", components=4), 8, fitted)


def test_more_components_than_values_are_refused() -> None:
    with pytest.raises(ParamsError, match="9 exceeds the 8 values"):
        build_target(TargetParams(kind="pca", components=9), 8)
