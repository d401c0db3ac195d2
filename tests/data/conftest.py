from pathlib import Path

import pytest

from mae.data.sharding.run import shard_dataset
from tests.data import zoo


@pytest.fixture(scope="session")
def make_params() -> zoo.MakeParams:
    """Return DataParams with changes: images=Path is a folder source, scenes=Path a COCO one."""
    return zoo.data_params


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 grey images of 32 x 24 in two classes, sharded."""
    root = tmp_path_factory.mktemp("small")
    for name in ("left", "right"):
        zoo.write_images(root / "source" / name, 75)
    shard_dataset("images", zoo.data_params(images=root / "source"), 0, root / "shards" / "images")
    return root / "shards" / "images"


@pytest.fixture(scope="session")
def mixed_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 colour images of many shapes, unlabelled, sharded."""
    root = tmp_path_factory.mktemp("mixed")
    zoo.write_images(root / "source", 60, height=-1, channels=3)
    params = zoo.data_params(images=root / "source", channels=3)
    shard_dataset("images", params, 0, root / "shards" / "images")
    return root / "shards" / "images"


@pytest.fixture(scope="session")
def real_data() -> Path:
    path = Path(__file__).parents[3] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real data of ../shared/data is not here")
    return path
