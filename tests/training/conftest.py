"""A task and a loader small enough to watch: linear regression on batches addressed by step."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mae.hashing import permutation
from mae.params import DivergenceParams, OptimParams, RuntimeParams, read_params
from mae.training.devices import Place
from mae.training.keeping import Observe, Run
from mae.training.numerics import Numerics
from mae.training.task import Task
from mae.training.trainer import Trainer
from tests.ports import free_port

ROOT = Path(__file__).parents[2]

Poison = dict[tuple[int, int], float]
CAREFUL = {"spike": 3.0, "patience": 4, "backoff": 0.5, "give_up": 2}


@dataclass(frozen=True)
class Points:
    x: Tensor
    y: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> "Points":
        return Points(self.x.to(device), self.y.to(device), self.ids)

    def split(self, parts: int) -> "list[Points]":
        pieces = (tensor.chunk(parts) for tensor in (self.x, self.y, self.ids))
        return [Points(*piece) for piece in zip(*pieces, strict=True)]


class PointLoader:
    """64 points of a noisy plane; `poison` multiplies them: (step, rank) -> factor."""

    images = 64
    wait_seconds = 0.0

    def __init__(self, batch: int, place: Place, poison: Poison | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(64, 6, generator=generator)
        self.y = self.x @ torch.arange(6.0) + 0.1 * torch.randn(64, generator=generator)
        self.batch, self.place, self.poison = batch, place, poison or {}

    def epoch_of(self, step: int) -> int:
        return step // (64 // self.batch)

    def batches(self, start: int, stop: int) -> Iterator[Points]:
        part = self.batch // self.place.world_size
        for step in range(start, stop):
            order = permutation(0, "order", self.epoch_of(step), 64)
            first = step % (64 // self.batch) * self.batch + self.place.rank * part
            rows = order[first : first + part]
            yield Points(self.x[rows] * self.factor(step), self.y[rows], rows)

    def factor(self, step: int) -> float:
        """Return what this process's points are multiplied with at a step."""
        return self.poison.get((step, self.place.rank), 1.0)


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
    poison: Poison | None = None,
    dropout: float = 0.1,
    accumulate: int = 1,
    runtime: dict[str, Any] | None = None,
    divergence: dict[str, Any] | None = None,
    numerics: Numerics | None = None,
    observe: Observe | None = None,
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
    watched = None if divergence is None else DivergenceParams(**(CAREFUL | divergence))
    return Trainer(
        PlaneTask(dropout),
        PointLoader(settings.batch, place, poison),
        settings,
        seed=0,
        place=place,
        runtime=settings_of_run,
        accumulate=accumulate,
        numerics=numerics,
        run=None if folder is None else Run(folder, "plane"),
        divergence=watched,
        observe=observe,
    )


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.task.parameters()])


@pytest.fixture(name="free_port")
def a_free_port() -> int:
    return free_port()


@pytest.fixture
def trained() -> Tensor:
    """The weights of an uninterrupted run."""
    trainer = make_trainer()
    trainer.run()
    return weights(trainer)
