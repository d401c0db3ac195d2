"""Small real datasets and encoders for the protocols: shards of folders, an untrained artifact."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae.data.digits import DRAWINGS, digit_images
from mae.data.sharding.run import shard_dataset
from mae.evaluation import feature_cache
from mae.model.artifact import save_artifact
from mae.model.autoencoder import build_autoencoder
from mae.params import Params, parse_params, read_params
from mae.pixels import PixelStatistics

ROOT = Path(__file__).parents[2]

MakeParams = Callable[..., Params]
MakeEncoder = Callable[[int, int], Path]
MakeShards = Callable[[dict[str, dict[str, int]]], Path]


def tiny_params(**evaluate: dict[str, Any]) -> Params:
    """Return the default parameters with a tiny model; keywords change sections of evaluate."""
    content = read_params(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    content["model"] |= {"patch": 8, "dim": 32, "depth": 2, "heads": 2}
    for protocol, changes in evaluate.items():
        content["evaluate"][protocol] |= changes
    return parse_params(content)


@pytest.fixture(scope="session", autouse=True)
def features_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where features are kept while tests run: never in the project's runs/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_cache, "FOLDER", tmp_path_factory.mktemp("features"))
        yield feature_cache.FOLDER


@pytest.fixture(scope="session")
def make_params() -> MakeParams:
    return tiny_params


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """Return a maker of shards from {split: {class: images}}; the class '' means no label.

    Images are noise, brighter from class to class.
    """

    def make(counts: dict[str, dict[str, int]]) -> Path:
        rng = np.random.default_rng(0)
        for split, classes in counts.items():
            for level, (name, count) in enumerate(classes.items()):
                folder = tmp_path / "images" / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for index in range(count):
                    pixels = rng.integers(0, 100, (32, 32), dtype=np.uint8) + np.uint8(60 * level)
                    Image.fromarray(pixels).save(folder / f"{index}.png")
        return _shard(tmp_path / "images", tmp_path / "shards" / "images")

    return make


@pytest.fixture(scope="session")
def digit_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 150 handwritten digits, four drawings each: 360 train, 120 val, 120 test."""
    root = tmp_path_factory.mktemp("digits")
    for index, record in enumerate(islice(digit_images(0), 150 * DRAWINGS)):
        split = ("train", "train", "train", "val", "test")[index // DRAWINGS // 10 % 5]
        path = root / "images" / split / str(record.label) / Path(record.id).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record.image.read())
    return _shard(root / "images", root / "shards" / "images")


def _shard(source: Path, target: Path) -> Path:
    content = tiny_params().model_dump(mode="json", by_alias=True)
    content["data"]["images"] = {"source": "folder", "path": str(source)}
    shard_dataset("images", parse_params(content).data, 0, target)
    return target


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of make_params' model, for grey images of 8 bits, before any training."""
    return _save_untrained(tmp_path_factory.mktemp("artifact") / "pretrain", 1, 8)


@pytest.fixture
def make_encoder(tmp_path: Path) -> MakeEncoder:
    """Return a maker of such an artifact for other channels and bit depth."""
    return lambda channels, bit_depth: _save_untrained(tmp_path / "other", channels, bit_depth)


def _save_untrained(folder: Path, channels: int, bit_depth: int) -> Path:
    autoencoder = build_autoencoder(tiny_params().model, channels, seed=7)
    statistics = PixelStatistics((0.3,) * channels, (0.2,) * channels, bit_depth)
    save_artifact(folder, autoencoder, statistics, {"steps": 0})
    return folder
