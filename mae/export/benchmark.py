"""How fast the encoder is in torch, in compiled torch and as each exported file: all take turns."""

import contextlib
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae.errors import MaestroError
from mae.export.contenders import Contender, contenders, torch_threads, why
from mae.export.session import Images
from mae.export.speed import PERCENTILES, Speed, Timing
from mae.model.artifact import read_info
from mae.params import BenchmarkParams
from mae.training.devices import resolve_device

LOG = logging.getLogger(__name__)


def measure_speed(
    pretrained: Path, exported: Path, params: BenchmarkParams, wanted_device: str
) -> Speed:
    """Time the encoder of `pretrained` and its files in `exported` on the devices present.

    Raises CheckpointError where either is missing or damaged, MaestroError where encoder.onnx
    cannot run; other contenders that cannot are left out, with the reason.
    """
    default = resolve_device(wanted_device).type
    devices = ["cpu"] if default == "cpu" else ["cpu", default]
    threads = params.threads or 0
    with torch_threads(params.threads) as of_torch, _quiet():
        entered = contenders(pretrained, exported, devices, threads, params.compile)
        left_out = dict(entered.left_out)
        timings: list[Timing] = []
        for batch in sorted(params.batches):
            images = made_up_images(pretrained, batch)
            timings += _timed(entered.contenders, images, params, left_out)
    timings = [timing for timing in timings if timing.key not in left_out]
    speed = Speed(timings, left_out, default, {"torch": of_torch, "onnxruntime": threads})
    if not any(map(speed.is_default, timings)):
        raise MaestroError(f"encoder.onnx cannot run on {default}: {left_out[f'fp32_{default}']}")
    for key, reason in left_out.items():
        LOG.warning("%s is not measured: %s", key, reason)
    return speed


def made_up_images(pretrained: Path, batch: int) -> Images:
    """Return always the same noise (N, C, H, W), as the encoder of `pretrained` takes it."""
    info = read_info(pretrained)
    a, depth = info["architecture"], info["statistics"]["bit_depth"]
    shape = (batch, a["channels"], a["height"], a["width"])
    noise = np.random.default_rng(0).integers(0, 1 << depth, shape, dtype=np.uint16)
    return noise.astype(np.uint8) if depth == 8 else noise


def _timed(
    entered: Sequence[Contender],
    images: Images,
    params: BenchmarkParams,
    left_out: dict[str, str],
) -> list[Timing]:
    """Warm every contender up, note in `left_out` who cannot run, and let the others take turns."""
    ready: list[tuple[Contender, float, float]] = []
    expected = entered[0].run(images)
    for contender in entered:
        if contender.key in left_out:
            continue
        started = time.perf_counter()
        try:
            found = contender.run(images)
        except Exception as error:  # whatever a compiler or a device may have to say
            left_out[contender.key] = why(error)
            continue
        ready.append((contender, time.perf_counter() - started, least_cosine(expected, found)))
    calls = [lambda run=contender.run: run(images) for contender, _, _ in ready]
    laps = take_turns(calls, params.rounds, params.seconds)
    return [
        _timing(contender, len(images), of_it, first, cosine)
        for (contender, first, cosine), of_it in zip(ready, laps, strict=True)
    ]


def take_turns(
    runs: Sequence[Callable[[], object]],
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[list[float]]]:
    """Return for each run, for each round, the seconds of every call in its turn.

    A turn lasts so many seconds, and one call at least, after one that does not count, since
    another contender has had the caches. Whoever began one round ends the next.
    """
    laps: list[list[list[float]]] = [[] for _ in runs]
    for turn in range(rounds):
        for place in range(len(runs)):
            index = (turn + place) % len(runs)
            runs[index]()
            laps[index].append(_one_turn(runs[index], seconds, clock))
    return laps


def _one_turn(run: Callable[[], object], seconds: float, clock: Callable[[], float]) -> list[float]:
    laps: list[float] = []
    started = now = clock()
    while not laps or now - started < seconds:
        run()
        before, now = now, clock()
        laps.append(now - before)
    return laps


def _timing(
    contender: Contender, batch: int, laps: list[list[float]], first: float, cosine: float
) -> Timing:
    percentiles = {
        name: round(statistics.median(1e3 * float(np.percentile(turn, rank)) for turn in laps), 4)
        for name, rank in PERCENTILES.items()
    }
    return Timing(
        contender=contender.name,
        device=contender.device,
        batch=batch,
        calls=sum(map(len, laps)),
        images_per_second=round(statistics.median(batch * len(t) / sum(t) for t in laps), 2),
        first_call_s=round(first, 3),
        min_cosine=round(cosine, 6),
        **percentiles,
    )


def least_cosine(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Return the smallest cosine of vectors (N, D) with each other; -1 for what is no number."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return float(np.nan_to_num(cosines, nan=-1.0).min())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the compiler's notes, and a line for each session, off the terminal."""
    levels = {name: logging.getLogger(name).level for name in ("torch", "mae.export.session")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
