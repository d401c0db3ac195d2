"""What decides how numbers are computed: shortened mantissas, determinism, compilation."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mae.params import PretrainParams
from mae.training.task import Task

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Numerics:
    """tf32: float32 products on a GPU with mantissas of 10 bits. deterministic: the same bits at
    every run on a GPU too. compile: torch.compile. ema: decay of the average of the weights."""

    tf32: bool = False
    deterministic: bool = False
    compile: bool = False
    ema: float | None = None

    @classmethod
    def from_params(cls, params: PretrainParams) -> "Numerics":
        return cls(params.tf32, params.deterministic, params.compile, params.ema)


@contextmanager
def settled(numerics: Numerics) -> Iterator[None]:
    """Set torch's switches for a run, and give them back after it."""
    precision = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    # cuBLAS reads this when it starts, and is deterministic only with it.
    if numerics.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_float32_matmul_precision("high" if numerics.tf32 else "highest")
    torch.use_deterministic_algorithms(numerics.deterministic)
    torch.backends.cudnn.deterministic = numerics.deterministic
    torch.backends.cudnn.benchmark = not numerics.deterministic
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


def compile_or_say_why_not(task: Task, batch: Any, epoch: int) -> None:
    """Compile the task in place; where that fails on this very batch, warn and leave it as it is.

    The trial's gradients are thrown away. Its state dict keeps its names.
    """
    task.compile()
    try:
        task(batch, epoch)[0].backward()
    except Exception as error:  # what a compiler may raise has no common ancestor
        task._compiled_call_impl = None
        lines = str(error).strip().splitlines() or [type(error).__name__]
        LOG.warning("pretrain.compile: goes on uncompiled, for torch.compile failed: %s", lines[0])
    task.zero_grad(set_to_none=True)
