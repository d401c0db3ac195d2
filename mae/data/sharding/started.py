"""What every kind of executor comes to, and why one may not start."""

from concurrent.futures import Executor
from dataclasses import dataclass

from mae.errors import ParamsError


@dataclass(frozen=True)
class Started:
    """An executor at work. slots: tasks that it does at a time, as far as it is known.

    lost: what a task raises whose worker has died.
    """

    executor: Executor
    slots: int
    lost: tuple[type[BaseException], ...] = ()


def missing(extra: str) -> ParamsError:
    return ParamsError(
        f"params.yaml: runtime.executor.kind is {extra}, which is not installed: "
        f"pip install 'maestro-mae[{extra}]', or choose processes"
    )


def silent(what: str, address: str, error: Exception) -> ParamsError:
    return ParamsError(
        f"params.yaml: runtime.executor.address is {address}, where no {what} answers ({error}): "
        "start one there, or set it to null for one on this machine"
    )
