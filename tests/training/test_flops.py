"""FLOPs against those counted by hand, and that counting them leaves no trace."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mae.data.loading.batch import Batch
from mae.model.blocks import make_blocks, run_blocks
from mae.model.encoder import Architecture, Encoder
from mae.model.linear import Linear
from mae.model.methods import build_model
from mae.params import read_params
from mae.pixels import PixelStatistics
from mae.training import flops as flops_module
from mae.training.flops import flops_per_image, matrix_rate
from mae.training.pretraining import PretrainTask
from mae.training.task import Task

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Rows:
    x: Tensor

    def __len__(self) -> int:
        return len(self.x)


class NetTask(Task):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Rows, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.net(batch.x).float().square().mean(), {}


class Blocks(nn.Module):
    """(N, T, D) through transformer blocks; keys and last as `run_blocks` takes them."""

    def __init__(self, dim: int, depth: int, masked: bool = False, last: int | None = None) -> None:
        super().__init__()
        self.blocks = make_blocks(dim, depth, heads=4, mlp_ratio=4.0)
        self.masked, self.last = masked, last

    def forward(self, tokens: Tensor) -> Tensor:
        keys = torch.ones(tokens.shape[:2], dtype=torch.bool) if self.masked else None
        return run_blocks(self.blocks, tokens, keys, last=self.last)


def count(net: nn.Module, x: Tensor) -> float:
    return flops_per_image(NetTask(net), Rows(x), epoch=0)


def block_flops(tokens: int, dim: int, queries: int | None = None) -> int:
    """Forward: qkv of all tokens, attention and what follows of the queries."""
    q = tokens if queries is None else queries
    qkv = 2 * tokens * dim * 3 * dim
    attention = 2 * q * tokens * dim * 2  # scores, and the mixture of values
    projection = 2 * q * dim * dim
    mlp = 2 * q * dim * 4 * dim * 2
    return qkv + attention + projection + mlp


@pytest.mark.parametrize("linear", [Linear, nn.Linear])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 7])
def test_a_perceptron(linear: type[nn.Linear], bias: bool, batch: int) -> None:
    net = nn.Sequential(linear(12, 40, bias=bias), nn.GELU(), linear(40, 5, bias=bias))
    assert count(net, torch.randn(batch, 12)) == 3 * 2 * (12 * 40 + 40 * 5)
    # Each of several tokens goes through it.
    assert count(net, torch.randn(batch, 9, 12)) == 9 * 3 * 2 * (12 * 40 + 40 * 5)


def test_a_convolution() -> None:
    net = nn.Conv2d(3, 8, kernel_size=(4, 2), stride=(4, 2))
    assert count(net, torch.randn(2, 3, 16, 8)) == 3 * 2 * (4 * 4) * 8 * (3 * 4 * 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [17, 600])
def test_transformer_blocks(precision: str, masked: bool, tokens: int) -> None:
    """bf16 takes plain products for attention up to 512 tokens, and the fused kernel beyond."""
    net = Blocks(32, depth=2, masked=masked)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        counted = count(net, torch.randn(2, tokens, 32))
    assert counted == 3 * 2 * block_flops(tokens, 32)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_last_block_of_few_queries(precision: str) -> None:
    net = Blocks(32, depth=2, last=5)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        counted = count(net, torch.randn(2, 17, 32))
    assert counted == 3 * (block_flops(17, 32) + block_flops(17, 32, queries=5))


def test_an_encoder_that_sees_a_quarter_of_the_patches() -> None:
    architecture = Architecture(
        channels=1, height=32, width=48, patch=(4, 8), dim=32, depth=3, heads=4, mlp_ratio=4.0
    )
    encoder, kept = Encoder(architecture), torch.arange(12).expand(5, 12)

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, images: Tensor) -> Tensor:
            return self.encoder(images, keep=kept).cls

    embedding = 2 * 12 * (4 * 8) * 32
    assert count(Seen(), torch.randn(5, 1, 32, 48)) == 3 * (embedding + 3 * block_flops(13, 32))


def test_pretraining() -> None:
    params = read_params(ROOT / "params.yaml")
    model = params.model.model_copy(update={"height": 24, "width": 32, "patch": (4, 8)})
    decoder = model.decoder.model_copy(update={"width": 64, "depth": 2})
    model = model.model_copy(update={"dim": 128, "depth": 3, "decoder": decoder})
    task = PretrainTask(build_model(model, 1, 10, 0), PixelStatistics((0.5,), (0.2,), 8), 0, 10)
    images = torch.zeros(6, 1, 24, 32, dtype=torch.uint8)
    batch = Batch(images, torch.arange(6), torch.zeros(6, dtype=torch.long))
    visible, patches, pixels = 6, 24, 4 * 8
    encoder = 2 * visible * pixels * 128 + 3 * block_flops(visible + 1, 128)
    decoder_flops = (
        2 * (visible + 1) * 128 * 64
        + block_flops(patches + 1, 64)
        + block_flops(patches + 1, 64, queries=patches - visible)
        + 2 * (patches - visible) * 64 * pixels
    )
    assert flops_per_image(task, batch, epoch=0) == 3 * (encoder + decoder_flops)


class Forgetful(nn.Module):
    """Everything that a forward pass may leave traces in."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.GELU(), Linear(8, 2)
        )
        self.register_buffer("seen", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.tracks_gradients = torch.is_grad_enabled()
        self.seen += x.mean()
        return self.layers(x) + torch.rand(2)


def test_counting_leaves_no_trace() -> None:
    torch.manual_seed(3)
    task, batch = NetTask(Forgetful()), Rows(torch.randn(16, 6))
    task.train()
    task.net.layers[2].eval()
    loss, _ = task(batch, 0)
    loss.backward()
    twin = copy.deepcopy(task)
    gradients = [p.grad.clone() for p in task.parameters()]
    generator = torch.get_rng_state()

    assert flops_per_image(task, batch, epoch=0) == 3 * 2 * (6 * 8 + 8 * 2)

    assert task.net.tracks_gradients is False
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(map(torch.equal, task.state_dict().values(), twin.state_dict().values()))
    assert torch.equal(task.net.seen, twin.net.seen)
    assert all(map(torch.equal, (p.grad for p in task.parameters()), gradients))
    assert [m.training for m in task.modules()] == [m.training for m in twin.modules()]
    # And the next steps are those of a task that nobody counted.
    losses = []
    for one in (task, twin):
        torch.set_rng_state(generator)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss, _ = one(batch, 0)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == losses[1]


def test_a_task_that_fails_is_left_as_it_was() -> None:
    class Failing(Forgetful):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("no")

    task, batch = NetTask(Failing()), Rows(torch.randn(4, 6))
    generator, before = torch.get_rng_state(), copy.deepcopy(task.state_dict())
    with pytest.raises(RuntimeError, match="no"):
        flops_per_image(task, batch, epoch=0)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(map(torch.equal, task.state_dict().values(), before.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rate_is_measured_and_draws_nothing(dtype: torch.dtype) -> None:
    generator = torch.get_rng_state()
    rate = matrix_rate(torch.device("cpu"), dtype)
    assert torch.equal(torch.get_rng_state(), generator)
    # From an emulated type on a busy core to a server's worth of them.
    assert 1e8 < rate < 1e15


def test_a_rate_is_operations_over_the_median_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    times = iter([0.001, 0.002, 0.05, 0.04, 0.9, 0.05])  # growing, growing, chosen, then measured

    def seconds(act: Any, device: torch.device) -> float:
        shapes.append(tuple(act().shape))
        return next(times)

    monkeypatch.setattr(flops_module, "_seconds", seconds)
    rate = matrix_rate(torch.device("cpu"), torch.float32)
    assert shapes == [(256, 256), (512, 512)] + [(1024, 1024)] * 4
    assert math.isclose(rate, 2 * 1024**3 / 0.05)
