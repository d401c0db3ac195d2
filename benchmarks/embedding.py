"""How busy `mae embed` keeps the model over JPEGs of photographs.

    python -m benchmarks.embedding --json benchmarks/results/embedding.json

ViT-S/16 and ViT-B/16 at 224 px with random weights, exported as the export stage does, over
photographs as JPEG files of 500 x 375 (about 110 kB). Contenders: one image after the other as a
script would do it, decoding and then computing; and ours, with several numbers of decoding threads
and with onnxruntime's threads spinning or not. They take turns; busy is the share of the time that
the model was computing.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.photos import encoded, photo
from mae.export.description import EncoderDescription
from mae.export.embed import embed_images
from mae.export.images import read_image
from mae.export.onnx_export import PixelEncoder, write_onnx
from mae.export.session import EncoderSession
from mae.files import write_json
from mae.model.encoder import Architecture, Encoder
from mae.pixels import PixelStatistics

MODELS = {"ViT-S/16": (384, 12, 6), "ViT-B/16": (768, 12, 12)}
STATISTICS = PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BATCH = 32


@dataclass(frozen=True)
class Measured:
    """One turn: images per second, share of the time that the model computed."""

    per_second: float
    busy: float
    processor_ms: float


def write_photos(folder: Path, count: int) -> None:
    """Write JPEGs; 16 scenes, each in several qualities, so that no two files are alike."""
    folder.mkdir()
    scenes = [photo(seed, 375, 500) for seed in range(min(count, 16))]
    for index in range(count):
        quality = 95 - index // len(scenes) % 8
        data = encoded(np.roll(scenes[index % len(scenes)], index, axis=1), quality)
        (folder / f"{index:06d}.jpg").write_bytes(data)


def write_model(path: Path, name: str) -> None:
    torch.manual_seed(0)
    dim, depth, heads = MODELS[name]
    architecture = Architecture(3, 224, 224, (16, 16), dim, depth, heads, 4.0)
    about = EncoderDescription(architecture, STATISTICS, 256 / 224, {})
    model = PixelEncoder(Encoder(architecture), STATISTICS)
    write_onnx(path, model, about, opset=20, optimize=True)


def one_by_one(session: EncoderSession, images: Path) -> Measured:
    """Decode an image, run the model on it, and so on: what a short script does."""
    started, processor = time.perf_counter(), time.process_time()
    computing, count = 0.0, 0
    view = session.view()
    for path in sorted(images.iterdir()):
        pixels = read_image(path.read_bytes(), view)
        before = time.perf_counter()
        session(pixels[None], ("cls",))
        computing += time.perf_counter() - before
        count += 1
    wall = time.perf_counter() - started
    spent = (time.process_time() - processor) / count * 1000
    return Measured(count / wall, computing / wall, spent)


def ours(session: EncoderSession, images: Path, out: Path, workers: int) -> Measured:
    processor = time.process_time()
    done = embed_images(session, images, out, feature="cls", batch=BATCH, workers=workers)
    spent = (time.process_time() - processor) / done.images * 1000
    return Measured(done.per_second, done.busy, spent)


def compare(name: str, root: Path, images: Path, rounds: int) -> list[dict[str, Any]]:
    model = root / f"{name.replace('/', '-')}.onnx"
    write_model(model, name)
    still = EncoderSession(model, "cpu", spinning=False)
    spinning = EncoderSession(model, "cpu", spinning=True)
    contenders = {
        "a script, image by image": partial(one_by_one, spinning, images),
        "ours, threads that spin": partial(ours, spinning, images, root / "a.parquet", 2),
        "ours, 1 decoding thread": partial(ours, still, images, root / "a.parquet", 1),
        "ours, 2 decoding threads": partial(ours, still, images, root / "a.parquet", 2),
        "ours, 4 decoding threads": partial(ours, still, images, root / "a.parquet", 4),
    }
    turns: dict[str, list[Measured]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender, run in contenders.items():
            turns[contender].append(run())
    rows = []
    for contender, measured in turns.items():
        row = {
            "model": name,
            "contender": contender,
            "images_per_second": round(statistics.median(m.per_second for m in measured), 2),
            "busy": round(statistics.median(m.busy for m in measured), 4),
            "least_busy": round(min(m.busy for m in measured), 4),
            "processor_ms": round(statistics.median(m.processor_ms for m in measured), 1),
        }
        print(row)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photos(root / "photos", options.images)
        before = os.getloadavg()[0]
        rows = [
            row
            for name in options.models
            for row in compare(name, root, root / "photos", options.rounds)
        ]
    if options.json:
        context = {
            "images": options.images,
            "rounds": options.rounds,
            "batch": BATCH,
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_before": round(before, 2),
            "load_after": round(os.getloadavg()[0], 2),
        }
        write_json(options.json, {"rows": rows, "context": context})


if __name__ == "__main__":
    main()
