import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

from mae.errors import DataError, ParamsError
from mae.model import fitting
from mae.model.fitting import draw_sample, fit_codebook, fit_pca, k_means
from tests.model.samples import noise


def clusters(n: int, centres: int, values: int) -> Tensor:
    """Points around far-apart centres, as many around each."""
    return 20 * noise(centres, values).repeat(n // centres, 1) + noise(n, values, seed=1)


@given(st.lists(st.integers(1, 97), min_size=1, max_size=6))
@settings(deadline=None, max_examples=20)
def test_pca_against_sklearn_however_the_stream_is_cut(lengths: list[int]) -> None:
    """A large common value and one dominant direction: a float32 covariance would not do."""
    patches = noise(600, 6) * torch.tensor([30.0, 3, 1, 0.3, 0.1, 0.01]) + 1000
    parts = list(patches.split([*lengths, 600 - sum(lengths)]))
    fitted = fit_pca(parts, 4)
    oracle = PCA(4, svd_solver="full").fit(patches.double().numpy())
    np.testing.assert_allclose(fitted["mean"], oracle.mean_, rtol=1e-6)
    products = fitted["basis"].double().numpy().T @ oracle.components_.T
    np.testing.assert_allclose(np.abs(products), np.eye(4), atol=1e-5)
    expected = np.sqrt(oracle.explained_variance_.mean())
    assert float(fitted["scale"]) == pytest.approx(expected, rel=1e-5)


def test_components_have_a_sign() -> None:
    basis = fit_pca([noise(100, 5)], 5)["basis"]
    assert (basis.gather(0, basis.abs().argmax(dim=0, keepdim=True)) > 0).all()


def test_pca_of_nothing_and_of_one_colour_is_refused() -> None:
    with pytest.raises(DataError, match="no patches"):
        fit_pca([], 2)
    with pytest.raises(DataError, match="too few"):
        fit_pca([noise(1, 4)], 2)
    with pytest.raises(DataError, match="all alike"):
        fit_pca([torch.ones(9, 4)], 2)
    with pytest.raises(ParamsError, match="5 exceeds the 4 values"):
        fit_pca([noise(9, 4)], 5)
    with pytest.raises(DataError, match="not finite"):
        fit_pca([torch.full((9, 4), float("nan"))], 2)


def test_k_means_against_sklearn() -> None:
    patches = noise(2000, 5)
    start = patches[:20]
    ours = k_means(patches, start)
    oracle = KMeans(20, init=start.numpy(), n_init=1, max_iter=25, tol=0, algorithm="lloyd")
    theirs = oracle.fit(patches.numpy())
    np.testing.assert_allclose(ours, theirs.cluster_centers_, rtol=1e-3, atol=1e-3)


def test_the_codebook_finds_the_clusters() -> None:
    patches = clusters(1200, 12, 6)
    codebook = fit_codebook([patches], 12, seed=3)["codebook"]
    truth = patches.reshape(100, 12, 6).mean(dim=0)
    distances = torch.cdist(truth, codebook)
    assert sorted(distances.argmin(dim=1).tolist()) == list(range(12))
    assert distances.min(dim=1).values.max() < 1e-3


def test_the_codebook_is_no_worse_than_sklearn() -> None:
    patches = noise(3000, 8)
    codebook = fit_codebook([patches], 32, seed=0)["codebook"]
    inertia = torch.cdist(patches, codebook).min(dim=1).values.square().sum().item()
    oracle = KMeans(32, n_init=1, random_state=0).fit(patches.numpy())
    assert inertia < 1.03 * oracle.inertia_


@given(st.lists(st.integers(1, 150), min_size=1, max_size=6), st.integers(0, 5))
@settings(deadline=None, max_examples=20)
def test_the_codebook_does_not_depend_on_how_the_stream_is_cut(
    lengths: list[int], seed: int
) -> None:
    patches = noise(1000, 4)
    parts = patches.split([*lengths, 1000 - sum(lengths)])
    whole = draw_sample([patches.reshape(10, 100, 4)], 64, seed)
    assert torch.equal(draw_sample(parts, 64, seed), whole)


def test_the_sample_is_spread_over_the_stream_and_keeps_its_order() -> None:
    places = torch.arange(10_000.0)[:, None]
    sample = draw_sample(places.split(100), 500, seed=0)[:, 0]
    assert len(sample) == 500
    assert torch.equal(sample, sample.sort().values)
    tenths = torch.bincount((sample / 1000).long(), minlength=10)
    assert tenths.min() > 25 and tenths.max() < 80
    assert not torch.equal(sample, draw_sample(places.split(100), 500, seed=1)[:, 0])


def test_a_stream_below_the_limit_is_taken_whole() -> None:
    patches = noise(90, 3)
    assert torch.equal(draw_sample(patches.split(7), 90, seed=0), patches)


def test_the_codebook_is_a_function_of_patches_and_seed() -> None:
    patches = noise(1000, 4)
    first, again, other = (fit_codebook([patches], 16, seed)["codebook"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_centre_that_lost_its_patches_goes_to_the_farthest() -> None:
    patches = torch.cat([noise(50, 2), noise(50, 2) + 100])
    start = torch.tensor([[50.0, 50.0], [-9e3, 0.0], [-8e3, 0.0]])
    moved = k_means(patches, start)
    assert torch.isfinite(moved).all()
    assert torch.bincount(torch.cdist(patches, moved).argmin(dim=1), minlength=3).min() > 0
    # Two heaps: no centre is left between them.
    assert (torch.cdist(moved, patches).min(dim=1).values < 5).all()


def test_more_codes_than_distinct_patches_are_refused() -> None:
    with pytest.raises(ParamsError, match="exceeds the 3 distinct patches"):
        fit_codebook([noise(3, 4).repeat(50, 1)], 4, seed=0)
    with pytest.raises(DataError, match="no patches"):
        fit_codebook([], 4, seed=0)


def test_the_codebook_works_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_SAMPLE", 120)
    patches = clusters(2400, 4, 3)
    codebook = fit_codebook(patches.split(50), 4, seed=0)["codebook"]
    truth = patches.reshape(600, 4, 3).mean(dim=0)
    assert torch.cdist(truth, codebook).min(dim=1).values.max() < 1
