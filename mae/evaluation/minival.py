"""A slice of train, held back to choose hyper-parameters on, so that test is read once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mae.errors import DataError
from mae.evaluation.labelled import LabelledSplit
from mae.hashing import random_bits


def minival_rows(train: LabelledSplit, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows of train to learn from and those to choose on, each int64 ascending.

    Of each class about `share` of the images is held back, one at least and never all: a class
    with one image stays where it can be learned. Which ones is a function of the seed and their
    ids alone. Raises DataError when every class has one image.
    """
    keys = random_bits(seed, "minival", 0, train.ids, 1)[:, 0]
    order = keys.argsort(stable=True)
    held = torch.zeros(len(train), dtype=torch.bool)
    for label in train.labels.unique():
        of_class = order[train.labels[order] == label]
        held[of_class[: _held_back(len(of_class), share)]] = True
    if not held.any():
        raise DataError(
            "every class has a single labelled image in train, so none can be held back to choose "
            "hyper-parameters on: add images, or leave one value of each in params.yaml"
        )
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def _held_back(images: int, share: float) -> int:
    return min(max(1, round(share * images)), images - 1)


def split_minival(
    train: LabelledSplit, share: float, seed: int
) -> tuple[LabelledSplit, LabelledSplit]:
    """Return the images to learn from and those to choose on: see `minival_rows`."""
    fit, held = minival_rows(train, share, seed)
    return train.take(fit), train.take(held)


def best_along(
    grid: Sequence[float], accuracy_of: Callable[[float], float]
) -> tuple[float, dict[float, float]]:
    """Return the value of an ascending grid that does best on minival, the smallest of equals,
    and the accuracy of those tried.

    Meant for strengths of regularisation, over which accuracy has one peak: after two falls in a
    row the rest, which takes longest to fit, is not tried. Without a choice nothing is.
    """
    values, tried = sorted(set(grid)), {}
    for value in values if len(values) > 1 else []:
        tried[value] = accuracy_of(value)
        last = list(tried.values())[-3:]
        if len(last) == 3 and last[0] > last[1] > last[2]:
            break
    return max(tried, key=lambda one: tried[one], default=values[0]), tried
