"""The HTTP service under load: throughput and latency, with dynamic batching and without.

    python -m benchmarks.serving [--requests 2000] [--connections 16] [--rounds 2]
        [--models small vit-s] [--device cpu|cuda] [--threads N] [--json FILE]

`mae serve` runs in a process of its own and answers so many clients at a time, each on a connection
that it keeps; every 20th request is broken in one of five ways. What comes back is checked: each
good request must get its image's vector within 1e-3 of an inference of that image alone, each
broken one a 4xx with a reason. Contenders take turns; medians of the rounds count. `tests/export/
serving/test_load.py` sends the same load.
"""

import argparse
import http.client
import io
import itertools
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).parents[1]
PATIENCE = 300
BROKEN = ("not an image", "bomb", "empty", "wrong type", "cut")
_LISTENING = re.compile(r"serving encoder .* on http://127\.0\.0\.1:(\d+) \(")


# --- The load ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """One request: the image's number, or the way in which it is broken."""

    what: int | str
    body: bytes
    kind: str = "application/octet-stream"


@dataclass
class Hit:
    """What became of a request. status 0: the client cut the connection."""

    shot: Shot
    status: int
    content: dict[str, Any]
    seconds: float


def shots(images: Sequence[bytes], count: int, share: float = 0.05) -> list[Shot]:
    """A mixture of good requests and broken ones, these spread evenly and in all five ways."""
    bomb = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(bomb, "PNG")
    broken = itertools.cycle(
        [
            Shot("not an image", b"certainly no image" * 50),
            Shot("bomb", bomb.getvalue()),
            Shot("empty", b""),
            Shot("wrong type", images[0], "text/plain"),
            Shot("cut", images[0]),
        ]
    )
    every = round(1 / share)
    return [
        next(broken)
        if at % every == every - 1
        else Shot(at % len(images), images[at % len(images)])
        for at in range(count)
    ]


def attack(port: int, load: Sequence[Shot], connections: int) -> list[Hit]:
    """Send the load over so many connections, each with its next request after its answer."""
    hits: list[Hit | None] = [None] * len(load)
    turn = itertools.count()  # next() of it is one step of the interpreter: no two get the same

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        while (at := next(turn)) < len(load):
            hits[at] = _fire(connection, port, load[at])
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(connections)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    missing = [at for at, hit in enumerate(hits) if hit is None]
    assert not missing, f"requests without an outcome: {missing[:10]}"
    return [hit for hit in hits if hit is not None]


def _fire(connection: http.client.HTTPConnection, port: int, shot: Shot) -> Hit:
    started = time.perf_counter()
    if shot.what == "cut":
        head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {len(shot.body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as cut:
            cut.sendall(head.encode() + shot.body[: len(shot.body) // 2])
        return Hit(shot, 0, {}, time.perf_counter() - started)
    connection.request("POST", "/embed", shot.body, {"Content-Type": shot.kind})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    return Hit(shot, answer.status, content, time.perf_counter() - started)


def faults(hits: Sequence[Hit], expected: NDArray[np.float32], tolerance: float) -> list[str]:
    """Say what is wrong with the outcomes: nothing, where all is as it must be."""
    found = []
    statuses = {"not an image": 422, "bomb": 413, "empty": 422, "wrong type": 415, "cut": 0}
    for hit in hits:
        what = hit.shot.what
        if isinstance(what, str):
            told = hit.status == 0 or (hit.content.get("error") and hit.content.get("detail"))
            if hit.status != statuses[what] or not told:
                found.append(f"{what}: {hit.status} {hit.content}")
        elif hit.status != 200:
            found.append(f"image {what}: {hit.status} {hit.content}")
        else:
            vector = np.array(hit.content["images"][0]["embedding"], np.float32)
            if (away := float(np.abs(vector - expected[what]).max())) > tolerance:
                found.append(f"image {what}: {away} away from its vector")
    return found


# --- The service ------------------------------------------------------------------------------


@dataclass
class Running:
    """A service, and the lines that it says."""

    port: int
    process: subprocess.Popen[str]
    said: list[str]

    @property
    def usage(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def state(self) -> dict[str, float]:
        """What must not grow: memory, threads, open files and connections."""
        usage = self.usage
        return {
            "rss_mb": usage.memory_info().rss / 1e6,
            "threads": usage.num_threads(),
            "files": usage.num_fds(),
        }

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def metric(self, series: str) -> float:
        """What /metrics says of a series, 0 where it is not there."""
        for line in self.get("/metrics").splitlines():
            if line.startswith(f"{series} "):
                return float(line.split()[-1])
        return 0.0


@contextmanager
def served(model: Path, *options: str) -> Iterator[Running]:
    """`mae serve` on a free port. Where the block does not end it, SIGTERM does, and it must leave
    with 0."""
    command = [*(sys.executable, "-m", "mae.cli", "serve", "--model", str(model))]
    process = subprocess.Popen(
        [*command, "--port", "0", *options], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said: list[str] = []
    reader = threading.Thread(target=said.extend, args=(process.stderr,))
    try:
        for line in process.stderr:
            said.append(line)
            if found := _LISTENING.search(line):
                break
        else:
            raise SystemExit("".join(said))
        reader.start()
        yield Running(int(found[1]), process, said)
        if process.poll() is None:
            process.terminate()
            code = process.wait(PATIENCE)
            assert code == 0, f"left with {code}: {said}"
    finally:
        process.kill()
        process.wait()
        if reader.ident is not None:
            reader.join()
        process.stderr.close()


# --- The comparison ---------------------------------------------------------------------------

CONTENDERS = {
    "dynamic batching": ["--batch", "32", "--wait-ms", "2"],
    "one image at a time": ["--batch", "1", "--wait-ms", "0"],
}
MODELS = {
    "small": {"height": 32, "width": 32, "patch": (4, 4), "dim": 192, "depth": 6, "heads": 3},
    "vit-s": {"height": 224, "width": 224, "patch": (16, 16), "dim": 384, "depth": 12, "heads": 6},
}
TITLES = {"small": "ViT 192 x 6, patch 4, 32 px", "vit-s": "ViT-S/16, 224 px"}


def write_model(path: Path, name: str) -> None:
    """An encoder with random weights: they make no difference to the time."""
    from mae.export.description import EncoderDescription
    from mae.export.onnx_export import PixelEncoder, write_onnx
    from mae.model.artifact import random_encoder
    from mae.model.encoder import Architecture
    from mae.pixels import PixelStatistics

    shape: dict[str, Any] = MODELS[name]
    architecture = Architecture(channels=3, mlp_ratio=4.0, **shape)
    statistics = PixelStatistics((0.48, 0.46, 0.41), (0.23, 0.22, 0.23), 8)
    about = EncoderDescription(architecture, statistics, 256 / 224, {})
    encoder = random_encoder(architecture, seed=0)
    write_onnx(path, PixelEncoder(encoder, statistics), about, opset=20, optimize=True)


def pictures(name: str, count: int = 32) -> list[bytes]:
    """JPEGs of the size that such a model is given: 500 x 375, or of the digits' kind."""
    from benchmarks.photos import encoded, photo

    height, width = (375, 500) if name == "vit-s" else (48, 64)
    return [encoded(photo(seed, height, width), 90) for seed in range(count)]


def expected_vectors(model: Path, images: Sequence[bytes]) -> NDArray[np.float32]:
    """Each image's vector by an inference of its own, in this process."""
    from mae.export.images import read_image
    from mae.export.session import EncoderSession

    session = EncoderSession(model, "cpu", threads=1)
    view = session.view()
    rows = [session(read_image(one, view)[None], ("cls",))["cls"] for one in images]
    return np.concatenate(rows)


def measured(
    model: Path, name: str, contender: str, arguments: argparse.Namespace
) -> dict[str, float]:
    """One round of one contender."""
    images = pictures(name)
    expected = expected_vectors(model, images)
    options = ["--device", arguments.device, "--threads", str(arguments.threads)]
    with served(model, *options, *CONTENDERS[contender]) as service:
        attack(service.port, shots(images, arguments.requests // 5), arguments.connections)
        before = service.state()
        images_before = service.metric("maestro_batch_images_sum")
        batches_before = service.metric("maestro_batch_images_count")
        busy = service.usage.cpu_times()
        started = time.perf_counter()
        load = shots(images, arguments.requests)
        hits = attack(service.port, load, arguments.connections)
        seconds = time.perf_counter() - started
        used = service.usage.cpu_times()
        if wrong := faults(hits, expected, tolerance=1e-3):
            raise SystemExit(f"{contender}: {len(wrong)} wrong outcomes, such as {wrong[:3]}")
        batches = service.metric("maestro_batch_images_count") - batches_before
        images_run = service.metric("maestro_batch_images_sum") - images_before
        after = service.state()
    good = [1000 * hit.seconds for hit in hits if hit.status == 200]
    p50, p95, p99 = np.percentile(good, [50, 95, 99])
    cpu = used.user + used.system - busy.user - busy.system
    return {
        "images_per_second": len(good) / seconds,
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "p99_ms": float(p99),
        "images_per_batch": images_run / batches,
        "processor_ms_per_image": 1000 * cpu / len(good),
        "good": len(good),
        "broken": len(hits) - len(good),
        "rss_mb_before": before["rss_mb"],
        "rss_mb_after": after["rss_mb"],
        "threads_more": after["threads"] - before["threads"],
        "files_more": after["files"] - before["files"],
    }


def context(arguments: argparse.Namespace) -> dict[str, Any]:
    import onnxruntime

    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load_before": round(os.getloadavg()[0], 1),
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        **{name: getattr(arguments, name) for name in ("requests", "connections", "rounds")},
        **{name: getattr(arguments, name) for name in ("device", "threads")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    content: dict[str, Any] = {"context": context(arguments), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            model = Path(folder) / f"{name}.onnx"
            write_model(model, name)
            rounds: dict[str, list[dict[str, float]]] = {contender: [] for contender in CONTENDERS}
            for _ in range(arguments.rounds):
                for contender in CONTENDERS:
                    rounds[contender].append(measured(model, name, contender, arguments))
            for contender, taken in rounds.items():
                medians = {
                    key: round(statistics.median(one[key] for one in taken), 2) for key in taken[0]
                }
                content["rows"].append({"model": TITLES[name], "contender": contender} | medians)
                print(json.dumps(content["rows"][-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
