"""Images/s of a whole pretraining step: Maestro against transformers' ViTMAE and lightly's MAE.

    python -m benchmarks.pretraining_step [--cases tiny base] [--precisions fp32 bf16]
        [--rounds 15] [--threads 1] [--device cpu] [--json FILE]

A step is forward, backward and torch's fused AdamW on a batch that is already in memory; each
library draws its own masks. All have the same weights (copied from ours), batch, optimiser,
and take turns within each round, so that a machine that slows down slows all of them. Before
anything is timed the three must give the same loss for the same weights and masks, in float32.
"""

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.mae_peers import LightlyMae, hf_loss, hf_mae
from mae.model.autoencoder import Autoencoder, build_autoencoder, masked_loss
from mae.params import ModelParams

CASES: dict[str, dict[str, Any]] = {
    "tiny": {
        "title": "ViT-Ti/4, 32 px, decoder 192 x 4",
        "batch": 128,
        "model": {
            "size": "tiny",
            "height": 32,
            "width": 32,
            "patch": 4,
            "decoder": {"width": 192, "depth": 4, "heads": 3},
        },
    },
    "base": {
        "title": "ViT-B/16, 224 px, decoder 512 x 8",
        "batch": 8,
        "model": {
            "size": "base",
            "height": 224,
            "width": 224,
            "patch": 16,
            "decoder": {"width": 512, "depth": 8, "heads": 16},
        },
    },
}
DTYPES = {"fp32": None, "bf16": torch.bfloat16}
TOLERANCE = 1e-5  # relative, between losses in float32
OURS = "maestro"

Step = Callable[[], None]
LossOf = Callable[[Tensor, Tensor], Tensor]


def model_params(case: dict[str, Any]) -> ModelParams:
    common = {
        "resize": 1.0,
        "mlp_ratio": 4.0,
        "mask": {"kind": "random", "ratio": 0.75},
        "target": "normalized_pixels",
    }
    return ModelParams(**common, **case["model"])


def contestants(ours: Autoencoder) -> dict[str, tuple[nn.Module, LossOf]]:
    """Return modules with the same weights, each with (images, ids) -> loss as it is trained."""
    theirs, lightly = hf_mae(ours), LightlyMae(ours)
    return {
        OURS: (ours, lambda images, ids: masked_loss(ours(images, ids, seed=0, epoch=0))),
        "transformers": (theirs, lambda images, ids: theirs(images).loss),
        "lightly": (lightly, lambda images, ids: lightly(images, None)),
    }


@torch.no_grad()
def losses_agree(ours: Autoencoder, images: Tensor, ids: Tensor) -> dict[str, float]:
    """Return each library's float32 loss for the same weights and masks; raise if they differ."""
    outcome = ours(images, ids, seed=0, epoch=0)
    losses = {
        OURS: float(masked_loss(outcome)),
        "transformers": float(hf_loss(hf_mae(ours).to(images.device), images, outcome.masking)),
        "lightly": float(LightlyMae(ours).to(images.device)(images, outcome.masking)),
    }
    for name, loss in losses.items():
        if abs(loss - losses[OURS]) > TOLERANCE * abs(losses[OURS]):
            raise SystemExit(f"{name} computes another function: {losses}")
    return losses


def step_of(
    module: nn.Module, loss_of: LossOf, images: Tensor, ids: Tensor, dtype: torch.dtype | None
) -> Step:
    learns = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            loss = loss_of(images, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds_of(step: Step, device: torch.device) -> tuple[float, float]:
    """Return the (wall, processor) seconds of one step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(name: str, precision: str, rounds: int, device: torch.device) -> dict[str, Any]:
    case = CASES[name]
    params = model_params(case)
    ours = build_autoencoder(params, channels=3, seed=0).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case["batch"], 3, params.height, params.width, generator=generator)
    images, ids = images.to(device), torch.arange(case["batch"], device=device)
    losses = losses_agree(ours, images, ids)
    steps = {
        library: step_of(module.to(device).train(), loss_of, images, ids, DTYPES[precision])
        for library, (module, loss_of) in contestants(ours).items()
    }
    for step in steps.values():
        for _ in range(2):
            step()
    wall: dict[str, list[float]] = {library: [] for library in steps}
    cpu: dict[str, list[float]] = {library: [] for library in steps}
    order = list(steps)
    for turn in range(rounds):
        for library in order[turn % len(order) :] + order[: turn % len(order)]:
            seconds = seconds_of(steps[library], device)
            wall[library].append(seconds[0])
            cpu[library].append(seconds[1])
    per_second = {k: case["batch"] / statistics.median(v) for k, v in wall.items()}
    peer = max((k for k in per_second if k != OURS), key=lambda k: per_second[k])
    return {
        "case": case["title"],
        "batch": case["batch"],
        "precision": precision,
        "images_per_second": {k: round(v, 2) for k, v in per_second.items()},
        "best_peer": peer,
        "ratio": round(median_ratio(wall, OURS, peer), 3),
        "ratio_of_processor_time": round(median_ratio(cpu, OURS, peer), 3),
        "float32_loss": losses,
    }


def median_ratio(seconds: dict[str, list[float]], ours: str, other: str) -> float:
    """Return the median over the rounds of the other's time by ours."""
    return statistics.median(b / a for a, b in zip(seconds[ours], seconds[other], strict=True))


def context(device: torch.device, threads: int, rounds: int) -> dict[str, Any]:
    import lightly
    import transformers

    name = torch.cuda.get_device_name() if device.type == "cuda" else _cpu_name()
    return {
        "hardware": name,
        "threads": threads,
        "rounds": rounds,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "lightly": lightly.__version__,
    }


def _cpu_name() -> str:
    capabilities = torch.cpu.get_capabilities()
    wide = [name for name in ("avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(name)]
    return f"{capabilities.get('cpu_name', platform.processor())} ({', '.join(wide)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    rows = []
    for name in arguments.cases:
        for precision in arguments.precisions:
            row = measure(name, precision, arguments.rounds, device)
            speeds = ", ".join(f"{k} {v:.1f}/s" for k, v in row["images_per_second"].items())
            print(
                f"{row['case']}, {precision}: {speeds}; {row['ratio']:.2f} x {row['best_peer']} "
                f"({row['ratio_of_processor_time']:.2f} x by processor time)",
                flush=True,
            )
            rows.append(row)
    if arguments.json:
        content = {"context": context(device, arguments.threads, arguments.rounds), "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
