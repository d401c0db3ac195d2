"""The labelled images that classification protocols learn from and are measured on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mae.data.dataset import DatasetInfo, read_dataset_info
from mae.data.loading.evaluation import Frame, evaluation_batches, evenly_spread
from mae.data.loading.loader import EvalLoader
from mae.data.reader import ShardReader
from mae.errors import DataError
from mae.hashing import permutation

LOG = logging.getLogger(__name__)

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class LabelledSplit:
    """The images of a split that have a label.

    positions int64 (n,): where they are in the split, ascending. labels int64 (n,): theirs.
    """

    name: str
    reader: ShardReader
    positions: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def ids(self) -> Tensor:
        """The images' own ids, int64 (n,)."""
        return self.reader.ids[self.positions]

    def take(self, rows: Tensor) -> "LabelledSplit":
        """Return some of these images: rows int64 (m,) count from the first of them."""
        return replace(self, positions=self.positions[rows], labels=self.labels[rows])

    def evenly_spread(self, at_most: int) -> "LabelledSplit":
        """Return `at_most` of these images, evenly apart, or all where there are no more."""
        return self.take(evenly_spread(len(self), at_most))

    def batches(self, frame: Frame, workers: int, batch: int = EVALUATION_BATCH) -> EvalLoader:
        """Return these images once, in order, as `frame` shows them."""
        return evaluation_batches(
            self.reader, frame, workers=workers, batch=batch, positions=self.positions
        )

    def without_images(self, classes: Sequence[str]) -> list[str]:
        """Return the names of the classes that have no image here."""
        present = set(self.labels.tolist())
        return [name for label, name in enumerate(classes) if label not in present]


def why_not_classifiable(info: DatasetInfo) -> str | None:
    """Return a sentence on why no classification can be measured on a dataset, or None."""
    if info.skipped:
        return info.skipped
    if not info.classes:
        return (
            f"the images of {info.folder} have no labels: to measure a classification, keep "
            "them in one folder per class"
        )
    if len(info.classes) == 1:
        return (
            f"the images of {info.folder} all have the label '{info.classes[0]}': with a single "
            "class there is nothing to tell apart"
        )
    return None


def labelled_split(shards: Path, split: str) -> LabelledSplit:
    """Return the labelled images of a split. Raises DataError when there are none."""
    reader = ShardReader(shards, split)
    positions = (reader.labels >= 0).nonzero()[:, 0]
    if not len(positions):
        raise DataError(
            f"the split {split} of {shards} has no labelled image: label some, or let "
            "data.splits hold out a share of the labelled ones"
        )
    return LabelledSplit(split, reader, positions, reader.labels[positions])


def all_images(shards: Path, split: str, at_most: int | None = None) -> LabelledSplit:
    """Return the images of a split with or without a label, -1 for none; where there are more
    than `at_most`, so many spread evenly. Raises DataError when there are none."""
    reader = ShardReader(shards, split)
    positions = evenly_spread(len(reader), at_most)
    return LabelledSplit(split, reader, positions, reader.labels[positions])


def train_and_test(shards: Path) -> tuple[LabelledSplit, LabelledSplit]:
    """Return the labelled images of train and test.

    Raises DataError for a class that nothing can be learned of: one that train lacks. A class
    that only test lacks is said in the log, and has no accuracy of its own.
    """
    classes = read_dataset_info(shards).classes
    train, test = labelled_split(shards, "train"), labelled_split(shards, "test")
    absent = train.without_images(classes)
    if absent:
        raise DataError(
            f"{_listed(absent)} of {shards} without a labelled image in train: add images, or "
            "remove the class, then shard again"
        )
    untested = test.without_images(classes)
    if untested:
        LOG.warning("%s without a test image: left out of balanced accuracy", _listed(untested))
    return train, test


def draw_labels(
    train: LabelledSplit, per_class: int | None, classes: Sequence[str], seed: int
) -> Tensor:
    """Return positions in train, int64 ascending: `per_class` of each class, or all for None.

    Which ones is a function of the seed, and a smaller budget is part of every larger one of
    the same seed. Raises DataError for a class with fewer.
    """
    if per_class is None:
        return train.positions
    order = permutation(seed, "label budget", 0, len(train))
    chosen = []
    for label, name in enumerate(classes):
        of_class = order[train.labels[order] == label]
        if len(of_class) < per_class:
            raise DataError(
                f"class '{name}' has {len(of_class)} labelled images in train, fewer than the "
                f"{per_class} labels per class asked for: lower labels_per_class in "
                "evaluate.finetune.budgets, or add images"
            )
        chosen.append(of_class[:per_class])
    return train.positions[torch.cat(chosen).sort().values]


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"class {shown}" if len(names) == 1 else f"classes {shown}{more}"
