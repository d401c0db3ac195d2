"""Top-1, balanced and per-class accuracy of predicted labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """Shares from 0 to 1.

    balanced: the mean of per_class. per_class: in the order of the classes; None for a class
    without an image among those measured, which balanced leaves out.
    """

    top1: float
    balanced: float
    per_class: tuple[float | None, ...]

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        return {
            "top1": self.top1,
            "balanced": self.balanced,
            "per_class": dict(zip(classes, self.per_class, strict=True)),
        }


def measure_accuracy(predictions: Tensor, labels: Tensor, classes: int) -> Accuracy:
    """Compare predictions with labels, both int64 (N,) in 0 .. classes - 1 on one device."""
    right = (predictions == labels).double()
    found = torch.bincount(labels, weights=right, minlength=classes)
    present = torch.bincount(labels, minlength=classes)
    shares = (found / present).tolist()
    per_class = tuple(
        share if count else None for share, count in zip(shares, present.tolist(), strict=True)
    )
    measured = [share for share in per_class if share is not None]
    return Accuracy(float(right.mean()), sum(measured) / len(measured), per_class)
