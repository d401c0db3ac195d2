"""What a classifier's answers are worth: accuracies, calibration, and which classes it confuses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mae.errors import DataError
from mae.evaluation.outcome import mean_and_std

_TOP = 5
_BINS = 15
_LISTED_CLASSES = 100  # up to which the confusion matrix is written down


@dataclass(frozen=True)
class Scores:
    """Shares from 0 to 1.

    top5: whether the class is among the five likeliest; None below 6 classes. per_class: in the
    order of the classes; None for a class without an image among those measured, which balanced,
    the mean of per_class, leaves out. calibration_error: the expected one (arXiv 1706.04599) in
    15 bins of equal width. confusion: images of class i taken for j, at [i][j].
    """

    top1: float
    top5: float | None
    balanced: float
    per_class: tuple[float | None, ...]
    calibration_error: float | None
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return it for JSON; without the confusion matrix where it would be enormous."""
        listed = len(classes) <= _LISTED_CLASSES
        return {
            "top1": self.top1,
            "top5": self.top5,
            "balanced": self.balanced,
            "per_class": dict(zip(classes, self.per_class, strict=True)),
            "calibration_error": self.calibration_error,
            "confusion": [list(row) for row in self.confusion] if listed else None,
        }

    def numbers(self, suffix: str = "") -> dict[str, float]:
        """Return what there is as flat numbers, their names ending in `suffix`."""
        named = {
            "accuracy": self.top1,
            "balanced_accuracy": self.balanced,
            "top5_accuracy": self.top5,
            "calibration_error": self.calibration_error,
        }
        return {f"{name}{suffix}": value for name, value in named.items() if value is not None}


def measure_scores(logits: Tensor, labels: Tensor) -> Scores:
    """Score logits (N, K), K classes, against labels int64 (N,) on the same device.

    Their softmax is the confidence, so logarithms of votes will do, minus infinity for none.
    Of equals the first counts as the likelier. Raises DataError for a NaN.
    """
    if logits.isnan().any():
        raise DataError("a classifier answered NaN: its learning diverged; lower its rate (blr)")
    predicted = logits.argmax(dim=1)
    confidence = logits.double().softmax(dim=1).amax(dim=1)
    top5 = _in_top(logits, labels) if logits.shape[1] > _TOP else None
    error = _calibration_error(confidence, predicted == labels)
    return _scores(predicted, labels, logits.shape[1], top5, error)


def measure_predicted(predicted: Tensor, labels: Tensor, classes: int) -> Scores:
    """Score predicted labels, int64 (N,) in 0 .. classes - 1, that came without logits."""
    return _scores(predicted, labels, classes, None, None)


def _scores(
    predicted: Tensor,
    labels: Tensor,
    classes: int,
    top5: float | None,
    calibration_error: float | None,
) -> Scores:
    pairs = torch.bincount(labels * classes + predicted, minlength=classes**2)
    confusion = pairs.reshape(classes, classes)
    present = confusion.sum(dim=1)
    shares = (confusion.diagonal().double() / present).tolist()
    per_class = tuple(
        share if count else None for share, count in zip(shares, present.tolist(), strict=True)
    )
    measured = [share for share in per_class if share is not None]
    return Scores(
        top1=float((predicted == labels).double().mean()),
        top5=top5,
        balanced=sum(measured) / len(measured),
        per_class=per_class,
        calibration_error=calibration_error,
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def _in_top(logits: Tensor, labels: Tensor) -> float:
    """A class that got no vote at all is never among the likeliest, however few got one."""
    top = logits.sort(dim=1, descending=True, stable=True).indices[:, :_TOP]
    voted = logits.gather(1, labels[:, None])[:, 0] > -torch.inf
    return float(((top == labels[:, None]).any(dim=1) & voted).double().mean())


def _calibration_error(confidence: Tensor, right: Tensor) -> float:
    """The mean gap between confidence and accuracy over bins (low, high], by images in each."""
    bins = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
    gaps = torch.zeros(_BINS, dtype=torch.float64, device=confidence.device)
    gaps.index_add_(0, bins, confidence - right.double())
    return float(gaps.abs().sum() / len(confidence))


def mean_numbers(scores: Sequence[Scores], suffix: str = "") -> dict[str, float]:
    """Return `Scores.numbers` averaged over seeds, each with its deviation under `_std`."""
    all_numbers = [one.numbers(suffix) for one in scores]
    means: dict[str, float] = {}
    for name in all_numbers[0]:
        means[name], means[f"{name}_std"] = mean_and_std([numbers[name] for numbers in all_numbers])
    return means
