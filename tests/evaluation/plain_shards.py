"""Shards of noise in one split only, or in some: for what must work where a split is missing."""

from pathlib import Path

import numpy as np
from PIL import Image

from mae.data.sharding.run import shard_dataset
from mae.params import Params, parse_params


def shards_without(
    params: Params, root: Path, splits: dict[str, float], classes: int = 0, images: int = 40
) -> Path:
    """Return shards of 24 x 24 noise, brighter from class to class, with only these splits.

    splits: the shares of val and test, 0 for none. classes 0: no labels.
    """
    rng = np.random.default_rng(0)
    for index in range(images):
        folder = root / "images" / (str(index % classes) if classes else "")
        folder.mkdir(parents=True, exist_ok=True)
        level = 80 * (index % classes) if classes else 0
        pixels = rng.integers(0, 90, (24, 24), dtype=np.uint8) + np.uint8(level)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    content = params.model_dump(mode="json", by_alias=True)
    content["data"]["images"] = {"source": "folder", "path": str(root / "images")}
    content["data"]["splits"] = {**splits, "stratify": False}
    shard_dataset("images", parse_params(content).data, 0, root / "shards")
    return root / "shards"
