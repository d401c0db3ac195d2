"""Learning from a budget of labels: an arm, several draws of them, and the choice of its rate.

Where there are several learning rates, each arm takes the one that is best on a minival of the
labels drawn, for all of its seeds together: a budget of labels is all that anybody has, so images
beyond it would be labels that nobody counted. The winner then learns from all of them.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mae.errors import DivergedError, ParamsError
from mae.evaluation.intervals import interval_over_seeds
from mae.evaluation.labelled import LabelledSplit, draw_labels
from mae.evaluation.learning import Adapt, Learned, LearningArm, Setting, train_and_score
from mae.evaluation.minival import split_minival
from mae.evaluation.outcome import mean_and_std
from mae.params import LabelBudget, OptimParams

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """An arm at a budget. blr: the rate it learned at. tried: accuracy on minival by rate, mean
    over the seeds, None where it diverged; empty where there was no choice."""

    blr: float
    tried: dict[float, float | None]
    runs: tuple[Learned, ...]

    @property
    def top1(self) -> tuple[float, ...]:
        return tuple(run.scores.top1 for run in self.runs)

    def numbers(self, key: str) -> dict[str, float]:
        """Return the mean accuracy under a key, and its deviation where there are seeds."""
        return described_over_seeds(key, self.top1)

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        return {
            "blr": self.blr,
            "minival": {f"{blr:g}": accuracy for blr, accuracy in self.tried.items()},
            "runs": [run.to_dict(classes) for run in self.runs],
            "interval": interval_over_seeds(self.top1),
            "seconds": sum(run.seconds for run in self.runs),
            "parameters": self.runs[0].parameters,
        }


def described_over_seeds(key: str, values: Sequence[float]) -> dict[str, float]:
    """Return {key: mean}, with {key}_std where there is more than one value."""
    mean, deviation = mean_and_std(values)
    return {key: mean, **({f"{key}_std": deviation} if len(values) > 1 else {})}


def measure(
    setting: Setting,
    arm: LearningArm,
    budget: LabelBudget,
    blrs: Sequence[float],
    adapt: Adapt | None = None,
) -> Measured:
    """Choose the rate on minival where there are several, then learn with it from every seed.

    A seed decides which labels are drawn, the same for every arm. Raises DivergedError where no
    rate leads anywhere.
    """
    optim = setting.params.evaluate.finetune.optim
    draws = {seed: drawn(setting, budget, seed) for seed in _seeds(setting, budget)}
    tried: dict[float, float | None] = {}
    if len(blrs) > 1:
        tried = {blr: _on_minival(setting, arm, draws, optim(budget, blr), adapt) for blr in blrs}
    blr = _best(tried, blrs)
    runs = tuple(
        train_and_score(setting, arm, split.positions, optim(budget, blr), seed, adapt=adapt)
        for seed, split in draws.items()
    )
    return Measured(blr, tried, runs)


def _on_minival(
    setting: Setting,
    arm: LearningArm,
    draws: dict[int, LabelledSplit],
    optim: OptimParams,
    adapt: Adapt | None,
) -> float | None:
    """Return the mean accuracy over the seeds, each measured on a part of its own labels."""
    accuracies = []
    for seed, split in draws.items():
        fit, minival = split_minival(split, setting.params.evaluate.minival, seed)
        try:
            run = train_and_score(
                setting, arm, fit.positions, optim, seed, adapt=adapt, test=minival
            )
        except DivergedError:
            LOG.warning("%s: blr %g diverges: it is not chosen", arm.name, optim.blr)
            return None
        accuracies.append(run.scores.top1)
    return mean_and_std(accuracies)[0]


def _best(tried: dict[float, float | None], blrs: Sequence[float]) -> float:
    """Return the rate with the highest accuracy, the lowest rate of equals."""
    if not tried:
        return blrs[0]
    reached = {blr: accuracy for blr, accuracy in tried.items() if accuracy is not None}
    if not reached:
        raise DivergedError(
            f"fine-tuning diverges at every rate of {', '.join(f'{blr:g}' for blr in blrs)}: give "
            "lower ones (blr), or precision bf16 or fp32"
        )
    return min(reached, key=lambda blr: (-reached[blr], blr))


def _seeds(setting: Setting, budget: LabelBudget) -> range:
    return range(setting.params.seed, setting.params.seed + budget.seeds)


def drawn(setting: Setting, budget: LabelBudget, seed: int) -> LabelledSplit:
    """Return the labelled images that a seed learns from."""
    train = setting.train
    positions = draw_labels(train, budget.labels_per_class, setting.classes, seed)
    return train.take(torch.searchsorted(train.positions, positions))


def check_budget(setting: Setting, budget: LabelBudget, blrs: Sequence[float]) -> None:
    """Raise DataError or ParamsError for a budget that cannot be met, before any is spent."""
    split = drawn(setting, budget, setting.params.seed)
    if len(blrs) > 1 and budget.labels_per_class == 1:
        raise ParamsError(
            "one label per class leaves none to choose among several learning rates: give blr one "
            "value, or the budget more labels"
        )
    if len(blrs) > 1:
        split_minival(split, setting.params.evaluate.minival, setting.params.seed)


def budget_name(budget: LabelBudget) -> str:
    count = budget.labels_per_class
    return "all" if count is None else f"{count}_per_class"


def budget_words(budget: LabelBudget) -> str:
    count = budget.labels_per_class
    if count is None:
        return "all labels"
    return f"{count} label{'s' if count > 1 else ''} per class"


def top1_of(arms: Mapping[str, Measured]) -> dict[str, tuple[float, ...]]:
    """Return the accuracies of every arm, one for each seed."""
    return {name: arm.top1 for name, arm in arms.items()}
