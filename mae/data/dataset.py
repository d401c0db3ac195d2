"""dataset.json: what a sharded dataset is, as the stages after sharding read it."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mae.errors import DataError
from mae.files import read_json, write_json
from mae.pixels import PixelStatistics

FORMAT = 2
_NAME = "dataset.json"


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset as a whole.

    classes: names of labels 0, 1, ...; categories: names of the annotations' categories.
    statistics: of the accepted training images (mean 0, std 1 where there are none).
    fingerprint: of ids, image bytes, labels, annotations, splits and the form of the pixels.
    recipe, code: hashes of the parameters and of the code that made it.
    splits: accepted images in each. instances: split -> category -> number of annotations.
    seen: all inputs, of which `accepted` are in the shards, `quarantined` have a fault, and
    `set_aside` were left out by choice (duplicates, removals...).
    limits: the bounds that quarantined an image.
    skipped: why the dataset is empty on purpose, or None.
    """

    folder: Path
    dataset: str
    layout: str
    classes: tuple[str, ...]
    categories: tuple[str, ...]
    statistics: PixelStatistics
    fingerprint: str
    recipe: str
    code: str
    splits: dict[str, int]
    instances: dict[str, dict[str, int]]
    seen: int
    accepted: int
    quarantined: int
    set_aside: int
    limits: dict[str, int]
    skipped: str | None = None

    @property
    def channels(self) -> int:
        return self.statistics.channels


def describe_dataset(info: DatasetInfo) -> str:
    if info.skipped:
        return info.skipped
    splits = ", ".join(f"{split} {count}" for split, count in info.splits.items())
    aside = f", {info.set_aside} set aside" if info.set_aside else ""
    return (
        f"{info.accepted} of {info.seen} images accepted, {info.quarantined} quarantined{aside} "
        f"(reasons in manifest.parquet); {splits}"
    )


def write_dataset_info(info: DatasetInfo, folder: Path) -> None:
    content = {**asdict(info), "format": FORMAT, "statistics": info.statistics.to_dict()}
    del content["folder"]
    write_json(folder / _NAME, content)


def read_dataset_info(folder: Path | str) -> DatasetInfo:
    """Read `folder`/dataset.json. Raises DataError when it is missing or of another format."""
    folder = Path(folder)
    path = folder / _NAME
    try:
        content: dict[str, Any] = read_json(path)
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no dataset: run `dvc repro shard`, or "
            f"`python -m pipelines.stages.shard {folder.name}`"
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): shard the data again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is not of format {FORMAT}: shard the data again")
    values: dict[str, Any] = {field.name: content.get(field.name) for field in fields(DatasetInfo)}
    values |= {
        "folder": folder,
        "classes": tuple(content["classes"]),
        "categories": tuple(content["categories"]),
        "statistics": PixelStatistics.from_dict(content["statistics"]),
    }
    return DatasetInfo(**values)
