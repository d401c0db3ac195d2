"""Processes that signal themselves, where and when they are told to.

They are forked from a server that has torch loaded, so that each starts in an instant.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from mae.training import checkpoints, pretraining
from mae.training.average import WeightAverage
from mae.training.checkpoints import Checkpoints
from mae.training.journal import Journal
from tests.training.conftest import PlaneTask

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["tests.training.kills"])


@dataclass(frozen=True)
class Kill:
    """A signal when the process comes by a place for the `count`-th time (at `time`: so many
    milliseconds after it first did)."""

    place: str
    count: int
    number: signal.Signals = signal.SIGKILL

    def strike(self) -> None:
        os.kill(os.getpid(), self.number)
        if self.number == signal.SIGKILL:
            time.sleep(60)  # a thread may go on for a moment


def _nothing(*_: Any) -> None:
    pass


def _write_half(tensors: Any, path: Path) -> None:
    save_file(tensors, path)
    os.truncate(path, path.stat().st_size // 2)


def _begin_the_line(journal: Journal, line: dict[str, Any]) -> None:
    assert journal.path is not None
    with journal.path.open("a") as file:
        file.write(json.dumps(line)[:15])


class Observer:
    """Looks at a plane's task, and draws from torch's generator, as an observer may."""

    def look(self, task: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            height = float(task.net(torch.ones(3, 6)).sum())  # type: ignore[operator]
        return {"height": height, "chance": 0.0 * float(torch.rand(1))}


PLACES: dict[str, tuple[Any, str, Callable[..., None]]] = {
    "time": (PlaneTask, "forward", _nothing),
    "forward": (PlaneTask, "forward", _nothing),
    "backward": (torch.Tensor, "backward", _nothing),
    "update": (torch.optim.AdamW, "step", _nothing),
    "average": (WeightAverage, "update", _nothing),  # the weights are new, their average is not
    "journal": (Journal, "write", _begin_the_line),
    "observe": (Observer, "look", _nothing),
    "tensors": (checkpoints, "save_file", _write_half),
    "state": (checkpoints, "write_json", _nothing),
    "rename": (checkpoints, "put_in_place", _nothing),
    "prune": (checkpoints, "remove", _nothing),
    "return": (Checkpoints, "discard_after", _nothing),
    "returned": (Journal, "rewind", _nothing),
    "pretraining": (pretraining.PretrainTask, "forward", _nothing),
}


def arm(kill: Kill | None) -> None:
    """Make this process die as told. Only ever called in a process of its own."""
    if kill is None:
        return
    owner, name, last_deed = PLACES[kill.place]
    whole = getattr(owner, name)
    times = 0

    def passing(*arguments: Any, **named: Any) -> Any:
        nonlocal times
        times += 1
        if kill.place == "time" and times == 1:
            threading.Timer(kill.count / 1000, kill.strike).start()
        elif kill.place != "time" and times == kill.count:
            last_deed(*arguments)
            kill.strike()
        return whole(*arguments, **named)

    setattr(owner, name, passing)


@dataclass(frozen=True)
class Rank:
    """A process's place in a run of `world` processes."""

    rank: int = 0
    world: int = 1
    port: int = 0

    def settle(self) -> None:
        torch.set_num_threads(1)
        if self.world > 1:
            os.environ |= {
                "RANK": str(self.rank),
                "LOCAL_RANK": str(self.rank),
                "WORLD_SIZE": str(self.world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.port),
            }


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = FORKS.Process(target=target, args=arguments)
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode
