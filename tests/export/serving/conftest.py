from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.export.serving import made


@dataclass(frozen=True)
class Files:
    """Two encoders of the same shape, a classifier, and an index of the first encoder."""

    encoder: Path
    other: Path
    classifier: Path
    index: Path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("served")
    encoder = made.write_encoder(root / "encoder.onnx")
    return Files(
        encoder,
        made.changed(encoder, root / "other" / "encoder.onnx", weights=1.5),
        made.write_classifier(root / "classifier.onnx"),
        made.write_index(root / "index", encoder),
    )


@pytest.fixture(scope="module")
def client(files: Files) -> Iterator[Any]:
    with made.serving(files.encoder, classifier=str(files.classifier), index=files.index) as it:
        yield it
