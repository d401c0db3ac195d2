from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mae.model import linear
from mae.model.linear import Linear


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Both ways on every processor, not only on those where each is the faster."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(linear, "_mkl_is_slow", lambda: request.param)
    yield request.param


def results(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape))
    assert x.grad is not None
    return [y, x.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("shape", [(3, 5, 8), (40, 8), (2, 3, 4, 8)])
@pytest.mark.parametrize("outputs", [4, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_torch_does(
    onednn: bool, shape: tuple[int, ...], outputs: int, bias: bool
) -> None:
    ours, theirs = Linear(8, outputs, bias=bias), nn.Linear(8, outputs, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for a, b in zip(results(ours, x), results(theirs, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_frozen_parts_get_no_gradient(onednn: bool) -> None:
    layer = Linear(8, 4)
    layer.weight.requires_grad_(False)
    layer(torch.ones(2, 3, 8)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None


def test_bf16_is_torchs_own(onednn: bool) -> None:
    ours, theirs = Linear(16, 8), nn.Linear(16, 8)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), theirs(x))


def test_no_rows_at_all(onednn: bool) -> None:
    layer = Linear(8, 4)
    y = layer(torch.zeros(2, 0, 8))
    y.sum().backward()
    assert y.shape == (2, 0, 4) and layer.weight.grad is not None
    assert not layer.weight.grad.any()
