"""The door to every source: params.yaml's data section -> a stream of records."""

from pathlib import Path
from typing import Literal

from mae.data.coco import open_coco
from mae.data.digits import digit_images, digit_scenes
from mae.data.folder import open_folder
from mae.data.records import Source
from mae.params import DataParams

Dataset = Literal["images", "scenes"]


def open_source(dataset: Dataset, data: DataParams, seed: int) -> Source | None:
    """Return the source of `images` or `scenes`, or None where params.yaml says `none`."""
    if dataset == "images":
        if data.images.path is not None:
            return open_folder(Path(data.images.path), data.max_pixels)
        return Source(digit_images(seed), "the embedded digits")
    if data.scenes.path is not None:
        return open_coco(Path(data.scenes.path), data.max_pixels)
    if data.scenes.source == "digits":
        return Source(digit_scenes(seed), "scenes of the embedded digits")
    return None
