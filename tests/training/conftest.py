"""A task and a loader small enough to watch: linear regression on batches addressed by step."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mae.hashing import permutation
from mae.params import OptimParams, RuntimeParams, read_params
from mae.training.devices import Place
from mae.training.task import Task
from mae.training.trainer import Trainer

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Points:
    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> "Points":
        return Points(self.x.to(device), self.y.to(device))

    def split(self, parts: int) -> "list[Points]":
        pairs = zip(self.x.chunk(parts), self.y.chunk(parts), strict=True)
        return [Points(x, y) for x, y in pairs]


class PointLoader:
    """64 points of a noisy plane; `poison` makes the batch of that step not a number."""

    images = 64
    wait_seconds = 0.0

    def __init__(self, batch: int, place: Place, poison: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(64, 6, generator=generator)
        self.y = self.x @ torch.arange(6.0) + 0.1 * torch.randn(64, generator=generator)
        self.batch, self.place, self.poison = batch, place, poison

    def epoch_of(self, step: int) -> int:
        return step // (64 // self.batch)

    def batches(self, start: int, stop: int) -> Iterator[Points]:
        part = self.batch // self.place.world_size
        for step in range(start, stop):
            order = permutation(0, "order", self.epoch_of(step), 64)
            first = step % (64 // self.batch) * self.batch + self.place.rank * part
            rows = order[first : first + part]
            x = self.x[rows] * (float("nan") if step == self.poison else 1.0)
            yield Points(x, self.y[rows])


class PlaneTask(Task):
    """A small network with dropout, so that a resumed run must also find the same dropout."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Linear(6, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 1)
            )

    def forward(self, batch: Points, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        error = self.net(batch.x)[:, 0].float() - batch.y
        return error.square().mean(), {"absolute": error.abs().mean()}


def make_trainer(
    folder: Path | None = None,
    place: Place | None = None,
    *,
    poison: int | None = None,
    dropout: float = 0.1,
    accumulate: int = 1,
    runtime: dict[str, Any] | None = None,
    **optim: Any,
) -> Trainer:
    place = place or Place(torch.device("cpu"))
    values: dict[str, Any] = {
        "epochs": 10,
        "batch": 16,
        "blr": 0.1,
        "weight_decay": 0.05,
        "warmup_epochs": 1,
        "precision": "fp32",
    }
    settings = OptimParams(**(values | optim))
    defaults = read_params(ROOT / "params.yaml").runtime
    settings_of_run = RuntimeParams(
        **(defaults.model_dump() | {"log_every": 4, "checkpoint_minutes": 1e-9} | (runtime or {}))
    )
    return Trainer(
        PlaneTask(dropout),
        PointLoader(settings.batch, place, poison),
        settings,
        seed=0,
        place=place,
        runtime=settings_of_run,
        accumulate=accumulate,
        folder=folder,
        identity="plane",
    )


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.task.parameters()])


@pytest.fixture
def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def trained() -> Tensor:
    """The weights of an uninterrupted run."""
    trainer = make_trainer()
    trainer.run()
    return weights(trainer)
