"""The door to every source: params.yaml's data section -> a listing of records."""

from pathlib import Path
from typing import Literal

from mae.data.digits import digit_images, digit_scenes
from mae.data.records import Source
from mae.data.sources.coco import open_coco
from mae.data.sources.files import byte_limit
from mae.data.sources.folder import open_folder
from mae.data.sources.huggingface import open_huggingface
from mae.data.sources.label_images import open_label_images
from mae.data.sources.opening import Opening, open_tree
from mae.data.sources.table import open_table
from mae.data.sources.voc import open_voc
from mae.data.sources.webdataset import open_webdataset
from mae.params import DataParams

Dataset = Literal["images", "scenes"]

__all__ = ["Dataset", "open_source"]


def open_source(
    dataset: Dataset, data: DataParams, seed: int, spool: Path | None = None
) -> Source | None:
    """Return the source of `images` or `scenes`, or None where params.yaml says `none`.

    spool: a folder for compressed tar archives, unpacked and found again by a later call; without
    one they are unpacked to a folder that goes with this process. Raises DataError where the
    source is missing or cannot be understood.
    """
    params = data.images if dataset == "images" else data.scenes
    if params.source == "none":
        return None
    if params.path is None:
        if dataset == "images":
            return Source(digit_images(seed), "the embedded digits")
        return Source(digit_scenes(seed), "scenes of the embedded digits")
    advice = f"set data.{dataset}.path in params.yaml"
    how = Opening(byte_limit(data.max_pixels), advice, spool)
    match params.source:
        case "webdataset":
            return open_webdataset(params.path, how)
        case "table":
            return open_table(params.path, how)
        case "huggingface":
            return open_huggingface(params.path, how)
        case "coco":
            return open_coco(open_tree(params.path, how))
        case "voc":
            return open_voc(open_tree(params.path, how))
        case "label_images":
            return open_label_images(open_tree(params.path, how), data.max_pixels)
    return open_folder(open_tree(params.path, how))
