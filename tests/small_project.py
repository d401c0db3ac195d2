"""A small project for tests: real shards of a few images, and an artifact with random weights."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae.data.dataset import read_dataset_info
from mae.data.sharding.run import shard_dataset
from mae.model.artifact import save_artifact
from mae.model.autoencoder import build_autoencoder
from mae.params import Params, parse_params, read_params

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def small_params(images: Path, **model: Any) -> Params:
    content = read_params(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    content["data"] |= {
        "images": {"source": "folder", "path": str(images)},
        "scenes": {"source": "none", "path": None},
        "splits": {"val": 0.2, "test": 0.3, "stratify": False},
    }
    content["model"] |= {
        "height": 16,
        "width": 24,
        "resize": 1.0,
        "patch": 4,
        "dim": 16,
        "depth": 1,
        "heads": 2,
        "mask": {"kind": "random", "ratio": 0.75},
        "target": "normalized_pixels",
        **model,
    }
    content["data"] |= {"channels": 1, "bit_depth": 8, "min_side": 8}
    content["model"]["decoder"] = {"width": 8, "depth": 1, "heads": 2}
    content["runtime"] |= {"workers": 1, "device": "cpu"}
    return parse_params(content)


def write_images(folder: Path, count: int = 40, height: int = 16, width: int = 24) -> None:
    """Two classes of grey images, and one file that is none."""
    draw = np.random.default_rng(0)
    for index in range(count):
        pixels = draw.integers(0, 256, (height, width), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        target = folder / ("dark" if index % 2 else "bright") / f"{index:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(buffer.getvalue())
    (folder / "dark" / "text.png").write_text("no image")


def pretrained_project(root: Path, **model: Any) -> Params:
    """Shards of a few images and an artifact with random weights below `root`."""
    write_images(root / "source")
    params = small_params(root / "source", **model)
    for dataset in ("images", "scenes"):
        shard_dataset(dataset, params.data, 0, root / "data/shards" / dataset)
    info = read_dataset_info(root / "data/shards/images")
    training = {
        "steps": 10,
        "loss": 0.5,
        "commit": COMMIT,
        "data_fingerprint": info.fingerprint,
    }
    autoencoder = build_autoencoder(params.model, 1, 0)
    save_artifact(root / "artifacts/pretrain", autoencoder, info.statistics, training)
    return params


@dataclass(frozen=True)
class Exported:
    """A project whose encoder has been exported, and the numbers of its gate."""

    root: Path
    params: Params
    numbers: dict[str, float]

    @property
    def shards(self) -> Path:
        return self.root / "data/shards/images"

    @property
    def pretrained(self) -> Path:
        return self.root / "artifacts/pretrain"

    @property
    def onnx(self) -> Path:
        return self.root / "artifacts/export/encoder.onnx"
