"""What the benchmark times: torch, compiled torch and each exported file, on each device."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mae.errors import CheckpointError, MaestroError
from mae.export.onnx_export import PixelEncoder
from mae.export.session import EncoderSession, Images
from mae.export.speed import COMPILED, TORCH
from mae.files import read_json
from mae.model.artifact import load_encoder

_REFUSED = "the export refused it, for reasons it names"

Run = Callable[[Images], NDArray[np.float32]]


@dataclass(frozen=True)
class Contender:
    """name: TORCH, COMPILED or a file's precision. run: pixels (N, C, H, W) of the host -> cls
    float32 (N, D) of the host, so that what a GPU must be given and give back counts."""

    name: str
    device: str
    run: Run

    @property
    def key(self) -> str:
        return f"{self.name}_{self.device}"


@dataclass(frozen=True)
class Entered:
    """The contenders, torch on the CPU first; left_out: why others cannot run, by their key."""

    contenders: list[Contender]
    left_out: dict[str, str] = field(default_factory=dict)


def contenders(
    pretrained: Path, exported: Path, devices: list[str], threads: int, compiled: bool
) -> Entered:
    """Open everything that can run on `devices`, of which the CPU is the first.

    threads: of each session; 0 leaves the number to onnxruntime. Raises CheckpointError where the
    encoder or export.json is missing or damaged.
    """
    made = _made(exported)
    model = _model(pretrained, made)
    entered = Entered([])
    for device in devices:
        placed = copy.deepcopy(model).to(device)
        entered.contenders.append(Contender(TORCH, device, partial(_run_torch, placed)))
        if compiled:
            quick = torch.compile(placed)
            entered.contenders.append(Contender(COMPILED, device, partial(_run_torch, quick)))
        for precision in made.refused:
            entered.left_out[f"{precision}_{device}"] = _REFUSED
        for precision, name in made.encoders.items():
            try:
                session = EncoderSession(exported / name, device, threads=threads)
            except MaestroError as error:
                entered.left_out[f"{precision}_{device}"] = str(error)
                continue
            entered.contenders.append(Contender(precision, device, partial(_run_onnx, session)))
    return entered


@dataclass(frozen=True)
class _Made:
    """What the export stage left. encoders: their files by precision, fp32 first. refused: the
    precisions that are not there."""

    encoders: dict[str, str]
    refused: list[str]
    resolution: str


def _made(exported: Path) -> _Made:
    path = exported / "export.json"
    try:
        content = read_json(path)
        encoders = {
            about["precision"]: name
            for name, about in content["files"].items()
            if about["kind"] == "encoder"
        }
        encoders = {"fp32": encoders.pop("fp32"), **encoders}
        return _Made(encoders, sorted(content["refused"]), content["resolution"])
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: run `dvc repro export`") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}): run `dvc repro export` again"
        ) from None


def _model(pretrained: Path, made: _Made) -> nn.Module:
    """Return in torch what was exported, with all that the files do themselves."""
    artifact = load_encoder(pretrained)
    resize = artifact.resize if made.resolution == "resized" else None
    return PixelEncoder(artifact.encoder, artifact.statistics, resize).eval()


def _run_torch(model: Any, images: Images) -> NDArray[np.float32]:
    device = next(model.parameters()).device
    with torch.inference_mode():
        return model(torch.from_numpy(images).to(device)).cls.cpu().numpy()


def _run_onnx(session: EncoderSession, images: Images) -> NDArray[np.float32]:
    return session(images, ("cls",))["cls"]


def why(error: Exception) -> str:
    """Return in one sentence why a contender cannot run."""
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    if "No working C++ compiler" in str(error) or "InvalidCxxCompiler" in str(error):
        return "torch.compile needs a C++ compiler (such as g++), and there is none here"
    return first


@contextmanager
def torch_threads(wanted: int | None) -> Iterator[int]:
    """Within, torch computes with so many threads; None: as many as it takes by itself."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(wanted)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
