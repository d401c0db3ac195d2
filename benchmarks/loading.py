"""How fast images become batches, ours beside the usual ways, in one run.

    python -m benchmarks.loading [--seconds 5] [--rounds 5] [--json benchmarks/results/loading.json]

Every contender reads the same 500 x 375 JPEGs (quality 95, about 110 kB, made here) and delivers
normalised float32 batches of 224 x 224 random resized crops (area 0.2 to 1, bicubic) and flips,
with two workers. They take turns, each turn after a warm-up; the medians over the rounds count,
and ratios more than rates. The processor time is that of all threads and processes.
"""

import argparse
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import peers
from benchmarks.photos import encoded, photo, shortened
from mae.data.loading.batch import Batch
from mae.data.loading.crops import random_crops
from mae.data.loading.loader import TrainLoader
from mae.data.reader import ShardReader
from mae.data.sharding.run import shard_dataset
from mae.files import write_json
from mae.params import AugmentParams, DataParams, read_params

HEIGHT = WIDTH = 224
BATCH = 64
WORKERS = 2
IMAGES = 192
QUALITY, STORED_QUALITY = 95, 90
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENT = AugmentParams(crop_area=(0.2, 1.0), crop_aspect=(0.75, 4 / 3), flip=True)

# Each yields the number of images of every batch that is ready.
Contender = Callable[[], Iterator[int]]


@dataclass(frozen=True)
class Result:
    """images per second, and milliseconds of processor time per image; medians over rounds."""

    name: str
    rate: float
    processor_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mae-loading-") as folder:
        contenders, quality = prepare(Path(folder))
        results = take_turns(contenders, options.rounds, options.seconds)
    show(results, quality)
    if options.json:
        write_json(options.json, as_content(results, quality, options.rounds, options.seconds))


def prepare(folder: Path) -> tuple[dict[str, Contender], dict[str, float]]:
    found, small, raw = folder / "found", folder / "256", folder / "raw"
    for place in (found, small, raw):
        (place / "class").mkdir(parents=True)
    contents = []
    for number in range(IMAGES):
        content = encoded(photo(number, 375, 500), QUALITY)
        shorter = shortened(content, 256)
        contents.append(content)
        (found / "class" / f"{number:04d}.jpg").write_bytes(content)
        (small / "class" / f"{number:04d}.jpg").write_bytes(encoded(shorter, STORED_QUALITY))
        np.save(raw / "class" / f"{number:04d}.npy", shorter)
    readers = {place.name: sharded(place, folder / "shards") for place in (found, small, raw)}
    usual = peers.Recipe(HEIGHT, WIDTH, AUGMENT.crop_area, MEAN, STD, BATCH, WORKERS)
    tars = peers.write_tars(contents, folder / "tars")
    contenders: dict[str, Contender] = {
        "torchvision ImageFolder + Pillow, 2 processes": lambda: usual.image_folder(found),
        "WebDataset + Pillow, 2 processes": lambda: usual.webdataset(tars),
        "simplejpeg, full decode alone, 2 threads": lambda: peers.decode_alone(contents, WORKERS),
        "ours, JPEGs as found": lambda: ours(readers["found"]),
        "ours, re-encoded at 256 px, quality 90": lambda: ours(readers["256"]),
        "ours, raw at 256 px": lambda: ours(readers["raw"]),
    }
    return contenders, quality_of(readers["found"])


def sharded(source: Path, shards: Path) -> ShardReader:
    defaults = read_params(Path(__file__).parents[1] / "params.yaml").data
    data = DataParams.model_validate(
        {
            **defaults.model_dump(),
            "images": {"source": "folder", "path": str(source)},
            "splits": {**defaults.splits.model_dump(), "val": 0.0, "test": 0.0},
            "channels": 3,
        }
    )
    shard_dataset("images", data, 0, shards / source.name)
    return ShardReader(shards / source.name, "train")


# --- ours -------------------------------------------------------------------------------------


def ours(reader: ShardReader) -> Iterator[int]:
    scale, shift = peers.scale_and_shift(MEAN, STD)
    ready = torch.empty(BATCH, 3, HEIGHT, WIDTH)
    batches = loader_of(reader).batches(0, 1 << 40)
    try:
        for batch in batches:
            ready.copy_(batch.images).mul_(scale).add_(shift)
            yield len(batch)
    finally:
        batches.close()


def loader_of(reader: ShardReader) -> TrainLoader:
    """Nothing decoded is kept: every image is read from its shard and decoded each time."""
    return TrainLoader(
        reader,
        height=HEIGHT,
        width=WIDTH,
        batch=BATCH,
        seed=0,
        purpose="benchmark",
        augment=AUGMENT,
        workers=WORKERS,
        cache_mb=0,
    )


def quality_of(reader: ShardReader) -> dict[str, float]:
    """PSNR in dB of our batches against Pillow's crop and resize of the same rectangles."""
    batches = loader_of(reader).batches(0, 1)
    values = [psnr(ours, theirs) for ours, theirs in beside_pillow(reader, next(batches))]
    batches.close()
    return {"psnr_lowest_db": min(values), "psnr_median_db": statistics.median(values)}


def beside_pillow(reader: ShardReader, batch: Batch) -> Iterator[tuple[NDArray, NDArray]]:
    where = {identity: index for index, identity in enumerate(reader.ids.tolist())}
    indices = torch.tensor([where[identity] for identity in batch.ids.tolist()])
    shapes = reader.heights[indices], reader.widths[indices]
    crops, flips = random_crops(0, "benchmark", 0, batch.ids, *shapes, AUGMENT)
    for index, crop, flip, image in zip(
        indices.tolist(), crops.tolist(), flips.tolist(), batch.images, strict=True
    ):
        top, left, height, width = crop
        whole = Image.open(io.BytesIO(reader.read(index)))
        part = whole.crop((left, top, left + width, top + height))
        theirs = np.asarray(part.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        yield image.permute(1, 2, 0).numpy(), theirs[:, ::-1] if flip else theirs


def psnr(a: NDArray, b: NDArray) -> float:
    error = float(((a.astype(float) - b) ** 2).mean())
    return 10 * float(np.log10(255**2 / max(error, 1e-3)))


# --- measuring --------------------------------------------------------------------------------


def take_turns(contenders: dict[str, Contender], rounds: int, seconds: float) -> list[Result]:
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, contender in contenders.items():
            measured[name].append(one_turn(contender, seconds))
            rate, processor = measured[name][-1]
            print(f"round {number + 1}: {name}: {rate:.0f}/s, {processor * 1e3:.2f} ms", flush=True)
    return [
        Result(
            name,
            statistics.median(rate for rate, _ in turns),
            1e3 * statistics.median(processor for _, processor in turns),
        )
        for name, turns in measured.items()
    ]


def one_turn(contender: Contender, seconds: float) -> tuple[float, float]:
    """Return images per second, and seconds of processor time per image."""
    batches = contender()
    try:
        warm = time.perf_counter() + min(2.0, seconds)
        while time.perf_counter() < warm:
            next(batches)
        started, used, images = time.perf_counter(), processor_seconds(), 0
        while time.perf_counter() - started < seconds:
            images += next(batches)
        took = time.perf_counter() - started
        return images / took, (processor_seconds() - used) / images
    finally:
        batches.close()  # type: ignore[attr-defined]


def processor_seconds() -> float:
    """Return what this process and its living workers have used."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for child in active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def show(results: list[Result], quality: dict[str, float]) -> None:
    first, ceiling = results[0], results[2]
    print(f"\n{'':48}{'images/s':>9}{'x (a)':>7}{'x (c)':>7}{'ms CPU':>8}{'x (a)':>7}")
    for letter, result in zip("abcdef", results, strict=True):
        print(
            f"({letter}) {result.name:44}{result.rate:9.0f}{result.rate / first.rate:7.2f}"
            f"{result.rate / ceiling.rate:7.2f}{result.processor_ms:8.2f}"
            f"{first.processor_ms / result.processor_ms:7.2f}"
        )
    print(
        f"our batch (d) beside Pillow's crop and resize of the same rectangles: "
        f"{quality['psnr_median_db']:.1f} dB, at least {quality['psnr_lowest_db']:.1f} dB"
    )


def as_content(
    results: list[Result], quality: dict[str, float], rounds: int, seconds: float
) -> dict[str, object]:
    first = results[0]
    return {
        "images": {"height": 375, "width": 500, "count": IMAGES, "quality": QUALITY},
        "output": {"height": HEIGHT, "width": WIDTH, "batch": BATCH, "workers": WORKERS},
        "rounds": rounds,
        "seconds": seconds,
        "load_average": round(os.getloadavg()[1], 1),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        "results": {
            result.name: {
                "images_per_second": round(result.rate, 1),
                "times_reference": round(result.rate / first.rate, 2),
                "processor_ms_per_image": round(result.processor_ms, 3),
                "times_reference_processor": round(first.processor_ms / result.processor_ms, 2),
            }
            for result in results
        },
        "quality": {name: round(value, 1) for name, value in quality.items()},
    }


if __name__ == "__main__":
    main()
