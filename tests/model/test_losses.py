import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae.errors import ParamsError
from mae.model.losses import Loss, build_loss, frequency_weights, patch_weights, weighted_mean
from mae.params import LossParams, TargetParams
from tests.model.samples import noise

PIXEL_KINDS = ["mse", "l1", "charbonnier", "frequency"]
CHANNELS, PATCH = 2, (4, 6)
VALUES = CHANNELS * PATCH[0] * PATCH[1]


def make_loss(kind: str, target: str = "pixels", **choices: Any) -> Loss:
    params = LossParams.model_validate({"kind": kind, **choices})
    target_params = TargetParams.model_validate({"kind": target})
    return build_loss(params, target_params, CHANNELS, PATCH)


def of_arrays(kind: str, residual: np.ndarray) -> np.ndarray:
    """The loss of each patch of differences (N, M, P), in numpy and float64."""
    if kind == "mse":
        return (residual**2).mean(-1)
    if kind == "l1":
        return np.abs(residual).mean(-1)
    if kind == "charbonnier":
        return np.sqrt(residual**2 + 1e-6).mean(-1)
    spectrum = np.fft.fft2(residual.reshape(*residual.shape[:2], CHANNELS, *PATCH), norm="ortho")
    down, across = np.meshgrid(np.fft.fftfreq(4), np.fft.fftfreq(6), indexing="ij")
    weights = 1 + np.sqrt(down**2 + across**2) * np.sqrt(24)
    return (np.abs(spectrum) ** 2 * weights / weights.mean()).mean((-3, -2, -1))


@pytest.mark.parametrize("kind", PIXEL_KINDS)
@given(n=st.integers(1, 4), m=st.integers(1, 5))
@settings(deadline=None, max_examples=8)
def test_each_loss_against_numpy(kind: str, n: int, m: int) -> None:
    prediction, target = noise(n, m, VALUES), noise(n, m, VALUES, seed=1)
    losses = make_loss(kind)(prediction, target)
    assert losses.shape == (n, m) and losses.dtype == torch.float32
    residual = (prediction.double() - target.double()).numpy()
    np.testing.assert_allclose(losses, of_arrays(kind, residual), rtol=1e-4)


@given(
    channels=st.sampled_from([1, 3, 4, 13]),
    patch=st.sampled_from([(1, 1), (4, 4), (3, 8), (5, 2)]),
)
@settings(deadline=None, max_examples=12)
def test_frequency_without_weights_is_the_squared_error(
    channels: int, patch: tuple[int, int]
) -> None:
    """Parseval: an orthonormal transform keeps the sum of squares."""
    target = TargetParams(kind="pixels")
    frequency = build_loss(LossParams(kind="frequency", alpha=0.0), target, channels, patch)
    squared = build_loss(LossParams(kind="mse"), target, channels, patch)
    shape = (2, 3, channels * patch[0] * patch[1])
    pair = noise(*shape), noise(*shape, seed=1)
    torch.testing.assert_close(frequency(*pair), squared(*pair), rtol=1e-5, atol=1e-6)


def test_frequencies_weigh_more_the_higher_they_are() -> None:
    weights = frequency_weights(1.0, (8, 8))
    assert weights.mean() == pytest.approx(1)
    assert weights.argmin() == 0 and weights.argmax() == 4 * 8 + 4
    assert weights[0, 1] / weights[0, 0] == pytest.approx(2)  # one cycle: 1 + 1
    assert torch.equal(frequency_weights(2.0, (4, 6)).mT, frequency_weights(2.0, (6, 4)))
    loss = make_loss("frequency", alpha=2.0)
    flat = torch.ones(1, 1, VALUES)
    checks = torch.tensor([1.0, -1.0]).repeat(VALUES // 2)[None, None]
    assert loss(checks, 0 * checks) > 3 * loss(flat, 0 * flat)


@pytest.mark.parametrize("kind", PIXEL_KINDS)
def test_gradients_are_finite_where_the_prediction_is_perfect(kind: str) -> None:
    prediction = noise(2, 3, VALUES).requires_grad_()
    make_loss(kind).mean(prediction, prediction.detach()).backward()
    assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("kind", ["frequency", "charbonnier"])
def test_gradients_against_differences(kind: str) -> None:
    loss = make_loss(kind, epsilon=0.5)
    target = noise(1, 2, VALUES, seed=1)
    prediction = noise(1, 2, VALUES).requires_grad_()
    loss.mean(prediction, target).backward()
    step = 1e-2 * (prediction.detach() - target) * noise(1, 2, VALUES, seed=2).abs()
    with torch.no_grad():
        change = loss.mean(prediction + step, target) - loss.mean(prediction - step, target)
    assert (prediction.grad * 2 * step).sum().item() == pytest.approx(change.item(), rel=1e-2)


def test_the_mean_squared_error_keeps_its_bits() -> None:
    """As in runs that exist already: another order of summation would change their weights."""
    prediction, target = noise(8, 27, VALUES), noise(8, 27, VALUES, seed=1)
    expected = (prediction - target).square().mean()
    assert torch.equal(make_loss("mse").mean(prediction, target), expected)


@pytest.mark.parametrize("kind", [*PIXEL_KINDS, "tokens"])
def test_everything_is_float32_under_autocast(kind: str) -> None:
    if kind == "tokens":
        loss, target = make_loss("mse", "tokens"), torch.randint(VALUES, (2, 3))
    else:
        loss, target = make_loss(kind), noise(2, 3, VALUES, seed=1)
    prediction = noise(2, 3, VALUES).bfloat16()
    plain = loss(prediction.float(), target)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(prediction, target)
        total = loss.mean(prediction, target)
    assert inside.dtype == total.dtype == torch.float32
    assert torch.equal(inside, plain)


@pytest.mark.parametrize("kind", [*PIXEL_KINDS, "tokens"])
def test_the_scale_depends_on_neither_ratio_nor_batch(kind: str) -> None:
    """The same error everywhere costs the same, however many patches share it."""
    losses = []
    for n, m in ((1, 1), (3, 2), (2, 9)):
        one = noise(1, 1, VALUES).expand(n, m, -1)
        if kind == "tokens":
            loss = make_loss("mse", "tokens")
            target = torch.full((n, m), 5)
        else:
            loss, target = make_loss(kind), torch.zeros_like(one)
        losses += [loss.mean(one, target), loss.mean(one, target, torch.full((n, m), 0.3))]
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(6), rtol=1e-5, atol=0)


def test_cross_entropy_against_its_definition() -> None:
    logits, codes = noise(2, 3, 7), torch.tensor([[0, 6, 3], [2, 2, 5]])
    loss = make_loss("mse", "tokens")
    logs = logits.double().numpy()
    logs = logs - np.log(np.exp(logs).sum(-1, keepdims=True))
    expected = -np.take_along_axis(logs, codes.numpy()[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(loss(logits, codes), expected, rtol=1e-5)
    assert loss.mean(logits, codes).item() == pytest.approx(expected.mean(), rel=1e-5)
    assert loss.mean(torch.zeros(2, 3, 7), codes).item() == pytest.approx(math.log(7))


def test_weights_say_which_patches_count() -> None:
    hidden = torch.tensor([[True, False, True, False]])
    valid = torch.tensor([[True, True, False, False]])
    expected = {"hidden": [1.0, 0, 0, 0], "all": [1.0, 1, 0, 0], "discounted": [1, 0.25, 0, 0]}
    for over, weights in expected.items():
        params = LossParams.model_validate({"over": over, "visible_weight": 0.25})
        assert patch_weights(params, hidden, valid).tolist() == [weights]
    assert patch_weights(LossParams(over="all"), hidden).tolist() == [[1, 1, 1, 1]]


def test_the_weighted_mean_divides_each_images_sum_by_its_weights() -> None:
    prediction, target = noise(2, 4, VALUES), noise(2, 4, VALUES, seed=1)
    loss = make_loss("l1")
    weights = torch.tensor([[1.0, 0.1, 0, 0], [1, 1, 0.1, 0]])
    by_image = np.average(loss(prediction, target).numpy(), weights=weights.numpy(), axis=1)
    found = loss.mean(prediction, target, weights).item()
    assert found == pytest.approx(by_image.mean(), rel=1e-5)
    hidden_only = loss.mean(prediction[:, :2], target[:, :2])
    ones = torch.tensor([[1.0, 1, 0, 0]]).expand(2, 4)
    torch.testing.assert_close(loss.mean(prediction, target, ones), hidden_only)


def test_the_mean_over_micro_batches_is_that_of_the_batch() -> None:
    values, weights = noise(6, 5).square(), (noise(6, 5, seed=2) > 0.3).float()
    weights[2] = 0  # an image of which nothing counts
    parts = [weighted_mean(v, w) for v, w in zip(values.chunk(3), weights.chunk(3), strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), weighted_mean(values, weights))


def test_what_does_not_count_may_be_anything() -> None:
    values = torch.tensor([[1.0, float("nan"), float("inf")]]).requires_grad_()
    total = weighted_mean(values, torch.tensor([[2.0, 0, 0]]))
    total.backward()
    assert total.item() == 1
    assert values.grad.tolist() == [[1, 0, 0]]
    assert weighted_mean(torch.ones(1, 3), torch.zeros(1, 3)).item() == 0


@pytest.mark.parametrize("kind", [*PIXEL_KINDS, "tokens"])
def test_a_loss_learns_nothing_and_saves_nothing(kind: str) -> None:
    loss = make_loss("mse", "tokens") if kind == "tokens" else make_loss(kind)
    assert not list(loss.parameters()) and not loss.state_dict()


@pytest.mark.parametrize(
    ("kind", "target", "words"),
    [
        ("l1", "tokens", "cross-entropy"),
        ("frequency", "tokens", "cross-entropy"),
        ("frequency", "pca", "compares pixels"),
    ],
)
def test_losses_that_do_not_go_with_the_target_are_refused(
    kind: str, target: str, words: str
) -> None:
    with pytest.raises(ParamsError, match=words):
        make_loss(kind, target)
