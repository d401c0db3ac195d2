import numpy as np
import pytest
import torch
from torch import nn

from mae.training.lars import LARS


def test_two_steps_on_a_matrix_by_hand() -> None:
    weights = nn.Parameter(torch.tensor([[3.0, 4.0]]))  # norm 5
    optimizer = LARS([weights], lr=2.0, momentum=0.9, weight_decay=0.0, trust=0.001)
    weights.grad = torch.tensor([[0.0, 2.0]])  # norm 2: scaled by 0.001 x 5 / 2
    optimizer.step()
    torch.testing.assert_close(weights.data, torch.tensor([[3.0, 4.0 - 2.0 * 0.005]]))
    norm = (3.0**2 + 3.99**2) ** 0.5
    weights.grad = torch.tensor([[1.0, 0.0]])  # scaled by 0.001 x norm / 1
    optimizer.step()
    expected = torch.tensor([[3.0 - 2.0 * 0.001 * norm, 3.99 - 2.0 * 0.9 * 0.005]])
    torch.testing.assert_close(weights.data, expected)


def test_weight_decay_joins_the_gradient_before_it_is_measured() -> None:
    weights = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = LARS([weights], lr=1.0, weight_decay=0.5, trust=0.001)
    weights.grad = torch.tensor([[1.0, -2.0]])
    optimizer.step()
    slope = torch.tensor([[1.0 + 1.5, -2.0 + 2.0]])  # norm 2.5
    expected = torch.tensor([[3.0, 4.0]]) - slope * (0.001 * 5 / 2.5)
    torch.testing.assert_close(weights.data, expected)


def test_vectors_get_plain_momentum_without_weight_decay() -> None:
    bias = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = LARS([bias], lr=0.1, momentum=0.5, weight_decay=10.0)
    for gradient in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])):
        bias.grad = gradient
        optimizer.step()
    torch.testing.assert_close(bias.data, torch.tensor([1.0 - 0.1 - 0.05, 2.0 - 0.1]))


@pytest.mark.parametrize("weights", [torch.zeros(2, 2), torch.ones(2, 2)])
@pytest.mark.parametrize("gradient", [torch.zeros(2, 2), torch.full((2, 2), 0.5)])
def test_zero_weights_or_gradients_stay_finite(
    weights: torch.Tensor, gradient: torch.Tensor
) -> None:
    parameter = nn.Parameter(weights.clone())
    parameter.grad = gradient.clone()
    LARS([parameter], lr=1.0).step()
    assert parameter.isfinite().all()
    moved = bool((parameter != weights).any())
    assert moved == bool(gradient.any())


def test_the_step_does_not_depend_on_the_scale_of_the_gradient() -> None:
    results = []
    for scale in (1e-3, 1.0, 1e3):
        weights = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        weights.grad = torch.ones(2, 3) * scale
        LARS([weights], lr=1.0).step()
        results.append(weights.data)
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[1], results[2])


def reference_step(
    weights: np.ndarray, slope: np.ndarray, memory: np.ndarray, lr: float, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """The update of arXiv 1708.03888 as the MAE reference code has it, in numpy."""
    if weights.ndim > 1:
        slope = slope + decay * weights
        slope = slope * (0.001 * np.linalg.norm(weights) / np.linalg.norm(slope))
    memory = 0.9 * memory + slope
    return weights - lr * memory, memory


def test_several_steps_equal_a_reference_by_hand() -> None:
    rng = np.random.default_rng(0)
    truth = [rng.normal(size=(3, 5)), rng.normal(size=5)]
    parameters = [nn.Parameter(torch.tensor(one)) for one in truth]
    memories = [np.zeros_like(one) for one in truth]
    optimizer = LARS(parameters, weight_decay=0.01)
    for step in range(5):
        lr = 3.0 / (step + 1)
        optimizer.param_groups[0]["lr"] = lr
        slopes = [rng.normal(size=one.shape) for one in truth]
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = torch.tensor(slope)
        optimizer.step()
        for index, slope in enumerate(slopes):
            truth[index], memories[index] = reference_step(
                truth[index], slope, memories[index], lr, 0.01
            )
    for parameter, expected in zip(parameters, truth, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1.0])
def test_a_step_that_is_called_off_changes_nothing_at_all(bad: float) -> None:
    def two_parameters() -> list[nn.Parameter]:
        return [nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), nn.Parameter(torch.ones(2))]

    def learn(optimizer: LARS, parameters: list[nn.Parameter], slope: float) -> None:
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, slope)
        optimizer.step()

    disturbed, calm = two_parameters(), two_parameters()
    first, second = LARS(disturbed, lr=1.0), LARS(calm, lr=1.0)
    for slope in (0.5, bad, -0.25):
        first.found_inf = torch.tensor(float(slope == bad or slope != slope))
        learn(first, disturbed, slope)
        if first.found_inf == 0:
            learn(second, calm, slope)
    for one, other in zip(disturbed, calm, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(first.state[one]["momentum"], second.state[other]["momentum"])


def test_the_very_first_step_may_be_called_off() -> None:
    weights = nn.Parameter(torch.ones(2, 2))
    weights.grad = torch.full((2, 2), float("nan"))
    optimizer = LARS([weights], lr=1.0)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(weights, torch.ones(2, 2))
    assert torch.equal(optimizer.state[weights]["momentum"], torch.zeros(2, 2))
