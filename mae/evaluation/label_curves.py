"""Accuracy by number of labels: what the runs of a label budget say together, and in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice, pairwise
from typing import Any

from mae.evaluation.arms import words
from mae.evaluation.intervals import interval_over_seeds, wilson
from mae.evaluation.outcome import Compared, mean_and_std, suffix_of

# The most decided first: fine-tuning is what MAE is for.
_TELLING = ("finetune", "logistic", "knn")
_IN_WORDS = {"finetune": "fine-tuning", "logistic": "logistic regression", "knn": "k-NN"}
_UNTRAINED = {"scratch": "from scratch", "random": "on a random encoder", "pixels": "on raw pixels"}


@dataclass(frozen=True)
class Run:
    """One classifier, learned from `labels` labels drawn by `seed`: top-1 accuracy on test."""

    protocol: str
    arm: str
    share: float
    labels: int
    seed: int
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Point:
    """The runs of one arm on one share of the labels, in the order of their seeds."""

    runs: tuple[Run, ...]
    images: int

    @property
    def share(self) -> float:
        return self.runs[0].share

    @property
    def labels(self) -> int:
        return self.runs[0].labels

    @property
    def accuracies(self) -> tuple[float, ...]:
        return tuple(run.accuracy for run in self.runs)

    @property
    def mean(self) -> float:
        return mean_and_std(self.accuracies)[0]

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 %: over the draws; of a single run, over what other test images would have given."""
        low, high = interval_over_seeds(self.accuracies) or wilson(self.mean, self.images)
        return max(0.0, low), min(1.0, high)


@dataclass(frozen=True)
class Curves:
    """protocol -> arm -> points by rising number of labels; images: of test."""

    by_protocol: dict[str, dict[str, list[Point]]]
    images: int

    @classmethod
    def of(cls, runs: Sequence[Run], images: int) -> "Curves":
        gathered: dict[tuple[str, str, float], list[Run]] = {}
        for run in runs:
            gathered.setdefault((run.protocol, run.arm, run.share), []).append(run)
        curves: dict[str, dict[str, list[Point]]] = {}
        for (protocol, arm, _), of_share in gathered.items():
            points = curves.setdefault(protocol, {}).setdefault(arm, [])
            points.append(Point(tuple(of_share), images))
        return cls(curves, images)

    def numbers(self) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for protocol, arms in self.by_protocol.items():
            for arm, points in arms.items():
                suffix = suffix_of(arm)
                for point in points:
                    key = f"accuracy_{protocol}_{share_name(point.share)}{suffix}"
                    numbers[key], deviation = mean_and_std(point.accuracies)
                    if len(point.runs) > 1:
                        numbers[f"{key}_std"] = deviation
        return numbers

    def comparisons(self) -> list[Compared]:
        return [
            Compared(
                task=f"{_capital(_IN_WORDS[protocol])}, {_labels_in_words(ours)}",
                metric="top-1 accuracy",
                pretrained=ours.accuracies,
                baseline=words(arm),
                values=theirs.accuracies,
                paired=True,
                images=self.images,
            )
            for protocol in sorted(self.by_protocol, key=_TELLING.index)
            for arm, points in self.by_protocol[protocol].items()
            if arm != "pretrained"
            for ours, theirs in zip(self.by_protocol[protocol]["pretrained"], points, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            protocol: {arm: [_described(point) for point in points] for arm, points in arms.items()}
            for protocol, arms in self.by_protocol.items()
        }

    def verdict(self) -> str:
        """Say what pretraining is worth at the smallest share, by the most telling protocol.

        It is held against whatever does best there without pretraining, by any protocol.
        """
        protocol = min(self.by_protocol, key=_TELLING.index)
        ours = self.by_protocol[protocol]["pretrained"][0]
        rival, baseline = self._best_untrained()
        gains = _gains(ours, baseline[0])
        gain = sum(gains) / len(gains)
        if may_be_chance(gains, ours, baseline[0]):
            rest = ", which may be chance"
        else:
            rest = _worth(ours, baseline) if gain > 0 else ""
        return (
            f"With {_labels_in_words(ours)} {_IN_WORDS[protocol]} on the pretrained encoder "
            f"{'gains' if gain >= 0 else 'loses'} {abs(100 * gain):.1f} points"
            f"{_give_or_take(gains)} {'over' if gain >= 0 else 'to'} the best without pretraining, "
            f"{rival}: {100 * ours.mean:.1f} against {100 * baseline[0].mean:.1f} %{rest}."
        )

    def _best_untrained(self) -> tuple[str, list[Point]]:
        """Return, in words and as a curve, what does best at the smallest share without weights."""
        candidates = {
            f"{_IN_WORDS[protocol]} {_UNTRAINED[arm]}": points
            for protocol, arms in self.by_protocol.items()
            for arm, points in arms.items()
            if arm in _UNTRAINED
        }
        return max(candidates.items(), key=lambda one: one[1][0].mean)


def _gains(ours: Point, theirs: Point) -> list[float]:
    """Return the gain for each draw; what leaves nothing to chance ran once for all of them."""
    draws = max(len(ours.runs), len(theirs.runs))
    pairs = zip(cycle(ours.accuracies), cycle(theirs.accuracies), strict=True)
    return [a - b for a, b in islice(pairs, draws)]


def may_be_chance(gains: Sequence[float], ours: Point, theirs: Point) -> bool:
    """Whether other draws, or other test images, might as well have given the opposite.

    Draws: the 95 % interval of the paired gains holds 0. Test images: the gain is within two
    standard errors of the difference of two shares.
    """
    gain = sum(gains) / len(gains)
    interval = interval_over_seeds(gains)
    variance = sum(point.mean * (1 - point.mean) for point in (ours, theirs)) / ours.images
    within_draws = interval is not None and interval[0] <= 0 <= interval[1]
    return within_draws or abs(gain) <= 2 * math.sqrt(variance)


def labels_worth(accuracy: float, points: Sequence[Point]) -> float | None:
    """Return how many labels a curve needs to reach an accuracy, or None where it never does.

    Between two points the accuracy is taken to rise along a line over the logarithm of the labels.
    """
    if accuracy <= points[0].mean:
        return float(points[0].labels)
    for before, after in pairwise(points):
        if before.mean < accuracy <= after.mean:
            way = (accuracy - before.mean) / (after.mean - before.mean)
            return before.labels * (after.labels / before.labels) ** way
    return None


def share_name(share: float) -> str:
    return f"{100 * share:g}_percent".replace(".", "_")


def _worth(ours: Point, baseline: Sequence[Point]) -> str:
    """Say how many labels the baseline needs for the same, where it was measured on more."""
    if len(baseline) < 2:
        return ""
    needed = labels_worth(ours.mean, baseline)
    if needed is None:
        most = _times(baseline[-1].labels / ours.labels)
        return f", which the other does not reach with {most} times the labels"
    return f", worth about as much as {_times(needed / ours.labels)} times the labels"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if round(ratio, 1) < 10 else f"{ratio:.0f}"


def _labels_in_words(point: Point) -> str:
    if point.share == 1:
        return f"all {point.labels} labels"
    return f"{100 * point.share:g} % of the labels ({point.labels})"


def _give_or_take(gains: Sequence[float]) -> str:
    interval = interval_over_seeds(gains)
    if interval is None:
        return " in a single run"
    return f" (± {50 * (interval[1] - interval[0]):.1f} over {len(gains)} draws)"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _described(point: Point) -> dict[str, Any]:
    return {
        "share": point.share,
        "labels": point.labels,
        "mean": point.mean,
        "std": mean_and_std(point.accuracies)[1],
        "interval": list(point.interval),
        "interval_over": "draws" if len(point.runs) > 1 else "test images",
        "accuracies": list(point.accuracies),
        "seconds": sum(run.seconds for run in point.runs) / len(point.runs),
    }
