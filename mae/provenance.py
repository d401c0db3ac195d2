"""The context that travels with every number: from what, by which code, on which machine."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mae import __version__
from mae.params import Params

_ROOT = Path(__file__).resolve().parents[1]

# What shapes the numbers. Locks and metrics change with every run of the pipeline, and are no
# reason to call the code behind a number changed.
_SOURCES = ("mae", "pipelines", "params.yaml", "dvc.yaml", "pyproject.toml", "requirements.lock")

_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")


def context(
    protocol: str,
    params: Params,
    sections: Sequence[str],
    *,
    data_fingerprint: str,
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    """Return what a reader needs to judge a number and to get it again.

    sections: the dotted names of the parameters that shape it, as in "evaluate.knn".
    """
    return {
        "protocol": protocol,
        "data_fingerprint": data_fingerprint,
        "params": resolved(params, sections),
        "seed": params.seed,
        "commit": commit(),
        "hardware": hardware(device),
        "versions": versions(),
        "seconds": round(seconds, 2),
    }


def resolved(params: Params, sections: Sequence[str]) -> dict[str, Any]:
    """Return the named sections of the parameters with every default filled in."""
    everything = params.model_dump(mode="json", by_alias=True)
    chosen = {}
    for section in sections:
        value: Any = everything
        for key in section.split("."):
            value = value[key]
        chosen[section] = value
    return chosen


def commit(root: Path = _ROOT) -> str | None:
    """Return the commit of the code, with "-dirty" when it was changed since; None outside git."""
    top = _git(root, "rev-parse", "--show-toplevel")
    head = _git(root, "rev-parse", "--verify", "HEAD")
    # An installed copy may lie inside another project's repository, whose commit says nothing.
    if top is None or head is None or Path(top).resolve() != root.resolve():
        return None
    present = [name for name in _SOURCES if (root / name).exists()]
    changes = _git(root, "status", "--porcelain", "--", *present)
    return f"{head}-dirty" if changes else head


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def hardware(device: torch.device) -> dict[str, Any]:
    """Return the processor, the cores this process may use, and the GPU that it computes on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"cpu": _cpu_model(), "cores": _cores(), "gpu": gpu, "platform": platform.machine()}


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"maestro": __version__, "python": platform.python_version(), **libraries}
