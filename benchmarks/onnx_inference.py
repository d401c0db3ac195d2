"""Milliseconds an image: torch, compiled torch and the exported files of a ViT-S/16 at 224 px.

    python -m benchmarks.onnx_inference [--batches 1 32] [--rounds 7] [--threads 1] [--json FILE]

The weights are random and always the same; the files are made as the export stage makes them. A
call goes from uint8 pixels on the host to the cls vectors on the host. All take turns within each
round, so that a machine that slows down slows all of them, and each turn begins with a call that
does not count. Beside the wall clock stands the processor's time, which other work on the machine
disturbs less; with one thread the two agree on an idle core. Before anything is timed, every
contender's vectors are held against torch's. A GPU is measured where there is one.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import photos
from benchmarks.pretraining_step import median_ratio, seconds_of
from mae.export.benchmark import least_cosine
from mae.export.contenders import Contender, contenders, torch_threads, why
from mae.export.description import EncoderDescription
from mae.export.onnx_export import PixelEncoder, write_onnx
from mae.export.speed import COMPILED, TORCH
from mae.export.variants import write_half, write_int8, write_int8_static
from mae.files import write_json
from mae.model.artifact import load_encoder, random_encoder, save_encoder_artifact
from mae.model.encoder import Architecture
from mae.pixels import PixelStatistics
from mae.provenance import hardware, versions

VIT_S = Architecture(
    channels=3, height=224, width=224, patch=(16, 16), dim=384, depth=12, heads=6, mlp_ratio=4.0
)
STATISTICS = PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 8)
OPSET = 20
FROZEN = "torch_compile_frozen"  # Inductor's option that packs the weights beforehand
LEAST_COSINE = {"fp16": 0.999, "int8": 0.98, "int8_static": 0.9}  # of random weights; others .99999
CALLS = {1: 5}  # counted in a turn, by batch; of others one


@dataclass(frozen=True)
class Claim:
    """`fast` must take at most 1 / `wanted` of the time of `slow`, at every batch."""

    device: str
    fast: str
    slow: str
    wanted: float


CLAIMS = (
    Claim("cpu", "fp32", TORCH, 1.0),
    Claim("cpu", "fp32", COMPILED, 1.0),
    Claim("cpu", "int8", "fp32", 2.0),
    Claim("cuda", "fp16", TORCH, 2.0),
)


@dataclass
class Laps:
    """One contender's calls at one batch: seconds, each round's median."""

    contender: Contender
    cosine: float
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def photographs(count: int) -> np.ndarray:
    """Return made photographs uint8 (N, 3, 224, 224)."""
    made = [photos.photo(number, VIT_S.height, VIT_S.width) for number in range(count)]
    return np.stack([np.asarray(one).transpose(2, 0, 1) for one in made])


def make_files(folder: Path) -> tuple[Path, Path]:
    """Write the encoder and its files as the stages do, and return both folders."""
    pretrained, exported = folder / "pretrain", folder / "export"
    save_encoder_artifact(pretrained, random_encoder(VIT_S, seed=0), STATISTICS, {}, resize=1.0)
    artifact = load_encoder(pretrained)
    about = EncoderDescription.of(artifact)
    model = PixelEncoder(artifact.encoder, STATISTICS)
    exported.mkdir()
    whole, plain = exported / "encoder.onnx", exported / "plain.onnx"
    write_onnx(whole, model, about, OPSET, optimize=True)
    write_onnx(plain, model, about, OPSET)
    write_half(whole, exported / "fp16.onnx", about)
    write_int8(whole, exported / "int8.onnx", about, ())
    write_int8_static(
        plain, exported / "int8_static.onnx", about, (), list(photographs(16)[:, None])
    )
    names = {"fp32": "encoder.onnx", "fp16": "fp16.onnx"}
    names |= {precision: f"{precision}.onnx" for precision in ("int8", "int8_static")}
    files = {name: {"precision": key, "kind": "encoder"} for key, name in names.items()}
    write_json(
        exported / "export.json", {"files": files, "refused": {}, "resolution": about.resolution}
    )
    return pretrained, exported


def frozen(pretrained: Path, device: str) -> Contender:
    """Return compiled torch with its weights packed beforehand."""
    import torch._inductor.config as inductor

    artifact = load_encoder(pretrained)
    compiled = torch.compile(PixelEncoder(artifact.encoder, STATISTICS).eval().to(device))

    def run(images: np.ndarray) -> np.ndarray:
        with inductor.patch(freezing=True), torch.no_grad():
            return compiled(torch.from_numpy(images).to(device)).cls.cpu().numpy()

    return Contender(FROZEN, device, run)


def measure(
    entered: list[Contender], images: np.ndarray, rounds: int, left_out: dict[str, str]
) -> list[Laps]:
    """Let all who can run take turns at one batch."""
    expected, ready = entered[0].run(images), []
    for contender in entered:
        try:
            cosine = least_cosine(expected, contender.run(images))
        except Exception as error:  # whatever a compiler or a device may have to say
            left_out[contender.key] = why(error)
            continue
        if cosine < LEAST_COSINE.get(contender.name, 0.99999):
            raise SystemExit(f"{contender.key} computes something else: cosine {cosine:.6f}")
        ready.append(Laps(contender, cosine))
    for turn in range(rounds):
        order = turn % len(ready)
        for laps in ready[order:] + ready[:order]:
            _one_turn(laps, images)
    return ready


def _one_turn(laps: Laps, images: np.ndarray) -> None:
    call: Callable[[], Any] = partial(laps.contender.run, images)
    call()
    device = torch.device(laps.contender.device)
    pairs = [seconds_of(call, device) for _ in range(CALLS.get(len(images), 1))]
    laps.wall.append(statistics.median(wall for wall, _ in pairs))
    laps.processor.append(statistics.median(processor for _, processor in pairs))


def row_of(laps: Laps, batch: int) -> dict[str, Any]:
    def per_image(seconds: float) -> float:
        return round(1e3 * seconds / batch, 3)

    return {
        "contender": laps.contender.name,
        "device": laps.contender.device,
        "batch": batch,
        "ms": per_image(statistics.median(laps.wall)),
        "ms_fastest_round": per_image(min(laps.wall)),
        "processor_ms": per_image(statistics.median(laps.processor)),
        "min_cosine": round(laps.cosine, 6),
    }


def judged(claim: Claim, ready: list[Laps], batch: int) -> dict[str, Any] | None:
    """Return how a claim fared, None where one of the two was not measured."""
    by_name = {one.contender.name: one for one in ready if one.contender.device == claim.device}
    if claim.fast not in by_name or claim.slow not in by_name:
        return None
    fast, slow = by_name[claim.fast], by_name[claim.slow]
    clocks = {"wall": (fast.wall, slow.wall), "processor": (fast.processor, slow.processor)}
    ratios = {
        name: round(median_ratio({"fast": a, "slow": b}, "fast", "slow"), 3)
        for name, (a, b) in clocks.items()
    }
    # A GPU's work takes none of the processor's time.
    counts = ratios["wall" if claim.device == "cuda" else "processor"]
    return {
        "claim": f"{claim.fast} against {claim.slow} on {claim.device}",
        "batch": batch,
        "wanted": claim.wanted,
        "times_as_fast": ratios["wall"],
        "times_as_fast_by_processor": ratios["processor"],
        "met": counts >= claim.wanted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    left_out = {} if len(devices) > 1 else {"cuda": "torch sees no GPU here"}
    rows, claims, before = [], [], os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, torch_threads(given.threads):
        with contextlib.redirect_stdout(io.StringIO()):  # calibration is talkative
            pretrained, exported = make_files(Path(folder))
        entered = contenders(pretrained, exported, devices, given.threads, compiled=True)
        left_out |= entered.left_out
        everyone = entered.contenders + [frozen(pretrained, device) for device in devices]
        for batch in given.batches:
            ready = measure(everyone, photographs(batch), given.rounds, left_out)
            for row in [row_of(laps, batch) for laps in ready]:
                print(row, flush=True)
                rows.append(row)
            found = [judged(claim, ready, batch) for claim in CLAIMS]
            claims += [one for one in found if one is not None]
    for claim in claims:
        print(claim, flush=True)
    for name, reason in left_out.items():
        print(f"not measured: {name}: {reason}")
    if given.json:
        context = {
            "model": "ViT-S/16, 224 x 224, random weights",
            "hardware": hardware(torch.device(devices[-1])),
            "threads": given.threads,
            "rounds": given.rounds,
            "load_before_and_after": [round(load, 2) for load in (before, os.getloadavg()[0])],
            "versions": versions() | {"onnxruntime": _onnxruntime_version()},
        }
        content = {"context": context, "rows": rows, "claims": claims, "left_out": left_out}
        given.json.write_text(json.dumps(content, indent=2) + "\n")


def _onnxruntime_version() -> str:
    import onnxruntime

    return onnxruntime.__version__


if __name__ == "__main__":
    main()
