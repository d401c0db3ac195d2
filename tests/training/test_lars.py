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
