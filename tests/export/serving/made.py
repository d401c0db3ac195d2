"""What a service needs, made small: models with random weights, an index, pictures, a service."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray
from PIL import Image

from mae.export.description import EncoderDescription
from mae.export.embed import embed_images
from mae.export.onnx_export import PixelClassifier, PixelEncoder, write_onnx
from mae.export.search import build_index
from mae.export.session import EncoderSession
from mae.model.artifact import random_encoder
from mae.model.encoder import Architecture
from mae.model.heads import Classifier
from mae.pixels import PixelStatistics

CLASSES = ("cat", "dog", "eel")
HEIGHT, WIDTH = 16, 24


def described(
    channels: int = 3, dim: int = 16, bit_depth: int = 8, **others: Any
) -> EncoderDescription:
    architecture = Architecture(
        channels=channels,
        height=HEIGHT,
        width=WIDTH,
        patch=(8, 8),
        dim=dim,
        depth=1,
        heads=2,
        mlp_ratio=2,
    )
    statistics = PixelStatistics((0.5,) * channels, (0.25,) * channels, bit_depth)
    training = {"steps": 7, "commit": "c0ffee", "data_fingerprint": "f1"}
    return EncoderDescription(architecture, statistics, 1.25, training, **others)


def write_encoder(path: Path, seed: int = 1, **kind: Any) -> Path:
    about = described(**kind)
    encoder = random_encoder(about.architecture, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    resize = about.resize if about.resolution == "resized" else None
    write_onnx(path, PixelEncoder(encoder, about.statistics, resize), about, opset=20)
    return path


def write_classifier(path: Path, seed: int = 1) -> Path:
    about = described(kind="classifier", classes=CLASSES)
    encoder = random_encoder(about.architecture, seed=seed)
    model = Classifier(encoder, len(CLASSES), "cls", init_std=1.0, seed=seed)
    write_onnx(path, PixelClassifier(model, about.statistics), about, opset=20)
    return path


def changed(source: Path, path: Path, *, weights: float = 1.0, **architecture: int) -> Path:
    """A copy of a model with other weights, or one that says so of its architecture."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(weights), tensor.name))
    for entry in model.metadata_props:
        if entry.key == "maestro.architecture":
            entry.value = json.dumps(json.loads(entry.value) | architecture)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def picture(seed: int, height: int = 40, width: int = 50) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels: NDArray[np.uint8] | NDArray[np.uint16], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def png(seed: int, height: int = 40, width: int = 50) -> bytes:
    return encoded(picture(seed, height, width))


def bomb() -> bytes:
    """A picture of 100 megapixels in a few kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def write_index(folder: Path, encoder: Path, pictures: int = 12, feature: str = "mean") -> Path:
    """An index of png(0), png(1), ... under the names 00.png, 01.png, ..."""
    images = folder.with_name(f"{folder.name}-images")
    images.mkdir(parents=True)
    for seed in range(pictures):
        (images / f"{seed:02d}.png").write_bytes(png(seed))
    table = folder.with_name(f"{folder.name}.parquet")
    session = EncoderSession(encoder, "cpu", threads=1)
    embed_images(session, images, table, feature=feature, batch=8, workers=1)  # type: ignore[arg-type]
    build_index(table, folder)
    return folder


@contextmanager
def serving(model: Path, **settings: Any) -> Iterator[Any]:
    """A client of a service in this process, without a port; `client.service` is the service."""
    from starlette.testclient import TestClient

    from mae.export.serving.app import create_app
    from mae.export.serving.service import Service
    from mae.export.serving.settings import ServingSettings

    plain: dict[str, Any] = {"device": "cpu", "threads": 1, "reload_seconds": 0}
    service = Service(ServingSettings(str(model), **plain | settings))
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        client.service = service  # type: ignore[attr-defined]
        yield client


def counted(client: Any, name: str, **labels: str) -> float:
    """What /metrics says of a series, 0 where it is not there yet."""
    from prometheus_client.parser import text_string_to_metric_families

    text = client.get("/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
