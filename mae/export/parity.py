"""The gate in front of every export: onnxruntime must say what torch says, on real images."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mae.data.dataset import read_dataset_info
from mae.data.loading.batch import Batch
from mae.data.loading.loader import EvalLoader
from mae.data.reader import ShardReader
from mae.errors import DataError, MaestroError
from mae.export.description import OUTPUTS, EncoderDescription
from mae.export.onnx_export import PixelEncoder
from mae.export.session import EncoderSession, Images
from mae.params import ExportParams, RuntimeParams

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOutImages:
    """Images (N, C, H, W) as the encoder takes them, their keys, and the split they come from."""

    images: Images
    keys: list[str]
    split: str


@dataclass(frozen=True)
class Deviation:
    """The largest difference and smallest cosine of one output at one batch, and whose they are."""

    output: str
    batch: int
    max_abs: float
    max_abs_key: str
    min_cosine: float
    min_cosine_key: str


def held_out_images(
    shards: Path, about: EncoderDescription, count: int, runtime: RuntimeParams
) -> HeldOutImages:
    """Return `count` images spread over the test split, or over val where test is empty.

    Raises DataError when neither has an image, or the data's channels or bit depth are not the
    encoder's.
    """
    reader = _held_out_reader(shards)
    _check_same_kind(reader, about)
    positions = torch.linspace(0, len(reader) - 1, min(count, len(reader))).round().long()
    loader = EvalLoader(
        reader,
        height=about.architecture.height,
        width=about.architecture.width,
        resize=about.resize,
        batch=len(positions),
        workers=runtime.workers,
        cache_mb=0,
        positions=positions,
    )
    batches: list[Batch] = list(loader)
    images = torch.cat([batch.images for batch in batches]).numpy()
    return HeldOutImages(images, [reader.keys[i] for i in positions.tolist()], reader.split)


def _held_out_reader(shards: Path) -> ShardReader:
    counts = read_dataset_info(shards).splits
    for split in ("test", "val"):
        if counts.get(split):
            return ShardReader(shards, split)
    raise DataError(
        f"{shards} has no image in test or val to compare the export on: raise data.splits.test"
    )


def _check_same_kind(reader: ShardReader, about: EncoderDescription) -> None:
    found, wanted = reader.info.statistics, about.statistics
    if (found.channels, found.bit_depth) != (wanted.channels, wanted.bit_depth):
        raise DataError(
            f"the encoder takes {wanted.channels} channel(s) of {wanted.bit_depth} bits and the "
            f"data has {found.channels} of {found.bit_depth}: pretrain on this data, or shard it "
            "with the encoder's channels and bit depth"
        )


def measure_parity(
    model: PixelEncoder, session: EncoderSession, held_out: HeldOutImages
) -> list[Deviation]:
    """Compare every output at batches of 1, 2 and all images with torch's on all of them."""
    with torch.no_grad():
        features = model.cpu().eval()(torch.from_numpy(held_out.images))
    expected = {name: value.numpy() for name, value in features._asdict().items()}
    sizes = sorted({1, min(2, len(held_out.images)), len(held_out.images)})
    return [
        _deviation(name, size, expected[name], got[name], held_out.keys)
        for size in sizes
        for got in [_run_in_batches(session, held_out.images, size)]
        for name in OUTPUTS
    ]


def _run_in_batches(
    session: EncoderSession, images: Images, size: int
) -> dict[str, NDArray[np.float32]]:
    parts = [session(images[start : start + size]) for start in range(0, len(images), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in OUTPUTS}


def _deviation(
    name: str, size: int, expected: NDArray, got: NDArray, keys: Sequence[str]
) -> Deviation:
    n = len(expected)
    difference = np.abs(expected.astype(np.float64) - got).reshape(n, -1).max(axis=1)
    # A NaN is further from the truth than any number.
    difference = np.where(np.isnan(difference), np.inf, difference)
    cosine = np.nan_to_num(_cosine(expected, got).reshape(n, -1).min(axis=1), nan=-1.0)
    furthest, most_turned = int(difference.argmax()), int(cosine.argmin())
    return Deviation(
        output=name,
        batch=size,
        max_abs=float(difference[furthest]),
        max_abs_key=keys[furthest],
        min_cosine=float(cosine[most_turned]),
        min_cosine_key=keys[most_turned],
    )


def _cosine(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Return the cosine of vectors (N, D) or of each vector of maps (N, D, Hp, Wp)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)


def enforce_parity(deviations: list[Deviation], limits: ExportParams, provider: str) -> None:
    """Raise MaestroError for the worst deviation beyond the limits, if there is one."""
    for deviation in sorted(deviations, key=lambda found: -found.max_abs):
        too_far = deviation.max_abs > limits.max_abs
        if too_far or deviation.min_cosine < limits.min_cosine:
            key = deviation.max_abs_key if too_far else deviation.min_cosine_key
            raise MaestroError(
                f"the exported encoder does not agree with torch: output '{deviation.output}' at "
                f"batch {deviation.batch} on {provider} is off by {deviation.max_abs:.3g} (limit "
                f"export.max_abs {limits.max_abs:g}) with a cosine of {deviation.min_cosine:.6f} "
                f"(limit export.min_cosine {limits.min_cosine:g}), image {key}; nothing was "
                "exported"
            )
    worst = max(deviation.max_abs for deviation in deviations)
    LOG.info("parity on %s: largest difference from torch %.2g", provider, worst)


def parity_numbers(deviations: list[Deviation]) -> dict[str, float]:
    """Return the worst of all, and of each output, as flat numbers."""
    numbers = {
        "max_abs": max(d.max_abs for d in deviations),
        "min_cosine": min(d.min_cosine for d in deviations),
    }
    for name in OUTPUTS:
        own = [d for d in deviations if d.output == name]
        numbers[f"max_abs_{name}"] = max(d.max_abs for d in own)
        numbers[f"min_cosine_{name}"] = min(d.min_cosine for d in own)
    return numbers
