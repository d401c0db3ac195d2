"""The GPU's way of making views agrees with the threads'; here on the CPU, by the same code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.photos import encoded, photo
from mae.data.loading.loader import TrainLoader
from mae.data.reader import ShardReader
from mae.data.sharding.run import shard_dataset
from mae.params import AugmentParams
from tests.data import zoo

SMALL_CROPS = AugmentParams(crop_area=(0.2, 0.4), crop_aspect=(0.75, 1.333), flip=True)


def batch_of(folder: Path, device: torch.device | None) -> torch.Tensor:
    loader = TrainLoader(
        ShardReader(folder, "train"),
        height=96,
        width=80,
        batch=12,
        seed=0,
        purpose="test",
        augment=SMALL_CROPS,
        workers=2,
        cache_mb=0,
        jpeg_device=device,
    )
    (batch,) = loader.batches(0, 1)
    return batch.images


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of eight JPEGs and four PNGs, which the GPU's decoder does not know."""
    place = tmp_path_factory.mktemp("device")
    (place / "source").mkdir()
    for number in range(12):
        pixels = photo(number, 150, 190)[..., : request.param]
        shown = pixels[..., 0] if request.param == 1 else pixels
        name, content = f"{number}.jpg", encoded(shown, 95)
        if number % 3 == 0:
            name, content = f"{number}.png", zoo.png(pixels)
        (place / "source" / name).write_bytes(content)
    params = zoo.data_params(
        images=place / "source", channels=request.param, splits={"val": 0.0, "test": 0.0}
    )
    shard_dataset("images", params, 0, place / "shards")
    return place / "shards"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_views_agree(folder: Path, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    ours, theirs = batch_of(folder, None), batch_of(folder, torch.device(device))
    assert theirs.dtype == torch.uint8
    assert theirs.device.type == "cpu"
    keys = ShardReader(folder, "train").keys
    assert len(keys) == 12
    squares = (ours.double() - theirs.double()).square().mean(dim=(1, 2, 3)).numpy()
    assert (squares == 0).sum() == 4  # the PNGs
    assert 10 * np.log10(255**2 / squares[squares > 0]).min() > 35
