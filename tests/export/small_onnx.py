"""Exported files of a small encoder with random weights, made once in a process of tests."""

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
from onnx.external_data_helper import convert_model_to_external_data

from mae.export.description import EncoderDescription
from mae.export.onnx_export import PixelClassifier, PixelEncoder, write_onnx
from mae.model.artifact import load_encoder
from mae.model.heads import Classifier
from tests.small_project import pretrained_project

CLASSES = ("bright", "dark", "neither")


@dataclass(frozen=True)
class SmallOnnx:
    """A project with images of 16 x 24 in `source`, their shards, and exported files."""

    root: Path

    @property
    def encoder(self) -> Path:
        return self.root / "encoder.onnx"

    @property
    def classifier(self) -> Path:
        return self.root / "classifier.onnx"

    @property
    def source(self) -> Path:
        return self.root / "source"

    @property
    def shards(self) -> Path:
        return self.root / "data/shards/images"


@cache
def small_onnx() -> SmallOnnx:
    root = Path(tempfile.mkdtemp(prefix="maestro-small-onnx-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    pretrained_project(root)
    small = SmallOnnx(root)
    artifact = load_encoder(root / "artifacts/pretrain")
    encoder, statistics = artifact.encoder, artifact.statistics
    about = EncoderDescription.of(artifact)
    write_onnx(small.encoder, PixelEncoder(encoder, statistics), about, opset=20)
    classifier = Classifier(encoder, len(CLASSES), "mean", init_std=1.0, seed=0)
    about = EncoderDescription.of(artifact, kind="classifier", classes=CLASSES)
    write_onnx(small.classifier, PixelClassifier(classifier, statistics), about, opset=20)
    return small


def write_resized(path: Path, resize: float) -> None:
    """Write the same encoder with the resizing inside its graph."""
    artifact = load_encoder(small_onnx().root / "artifacts/pretrain")
    about = EncoderDescription(
        artifact.encoder.architecture, artifact.statistics, resize, {}, resolution="resized"
    )
    write_onnx(path, PixelEncoder(artifact.encoder, artifact.statistics, resize), about, opset=20)


def write_with_weights_beside(path: Path) -> Path:
    """Write the encoder as two files and return the second, `<name>.data`."""
    model = onnx.load(small_onnx().encoder)
    data = path.with_name(f"{path.name}.data")
    convert_model_to_external_data(model, location=data.name, size_threshold=256)
    onnx.save(model, path)
    return data
