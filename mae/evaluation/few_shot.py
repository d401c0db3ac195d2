"""Few-shot classification: what an encoder is worth to somebody with 1, 5 or 10 labels per class.

Multinomial logistic regression on frozen features that are standardised by the drawn images
alone. Its regularisation is fixed at C = 1: so few labels leave none to choose it on, and test is
not for choosing. Every encoder learns from the same labels, drawn `draws` times, and those of
fewer shots are among those of more.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.evaluation.arms import frozen_arms
from mae.evaluation.feature_cache import features_of
from mae.evaluation.intervals import interval_over_seeds
from mae.evaluation.labelled import (
    LabelledSplit,
    draw_labels,
)
from mae.evaluation.logistic import fit_logistic
from mae.evaluation.opening import open_labelled
from mae.evaluation.outcome import Compared, Outcome, compared, mean_and_std, suffix_of
from mae.evaluation.scores import measure_scores
from mae.params import Params
from mae.training.devices import Place

LOG = logging.getLogger(__name__)

PROTOCOL = "few_shot"

_C = 1.0


@dataclass(frozen=True)
class Shots:
    """Labels drawn from train: for each draw, rows int64 of the same number of every class."""

    count: int
    draws: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        return f"{self.count}_shot"

    @property
    def in_words(self) -> str:
        return f"{self.count} label{'' if self.count == 1 else 's'} per class"


def run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome:
    """Measure the pretrained encoder beside a random one, the baselines and the raw pixels.

    A number of shots that some class has too few images for is left out, in words. Raises
    DataError for an encoder that does not fit the data, for a class that train lacks and for a
    split without labels.
    """
    opened = open_labelled(shards, pretrained)
    if isinstance(opened, str):
        return Outcome(PROTOCOL, skipped=opened)
    info, artifact, train, test = opened
    drawn, left_out = draw_shots(params, train, info.classes)
    if not drawn:
        return Outcome(PROTOCOL, skipped=" ".join(left_out))
    accuracies: dict[str, dict[str, list[float]]] = {}
    feature = params.evaluate.few_shot.feature
    for name, arm in frozen_arms(params, artifact, pixels=True).items():
        train_features, test_features = (
            features_of(arm, split, feature, params, place) for split in (train, test)
        )
        accuracies[name] = {
            shots.name: [
                _accuracy(
                    (train_features[rows], train.labels[rows]),
                    (test_features, test.labels),
                    len(info.classes),
                    place.device,
                )
                for rows in shots.draws
            ]
            for shots in drawn
        }
    return Outcome(
        PROTOCOL,
        numbers=_numbers(accuracies),
        comparisons=tuple(_comparisons(drawn, accuracies, len(test))),
        detail={
            **{
                name: {shots: _described(values) for shots, values in of_arm.items()}
                for name, of_arm in accuracies.items()
            },
            "left_out": left_out,
            "images": {split.name: len(split) for split in (train, test)},
        },
    )


def draw_shots(
    params: Params, train: LabelledSplit, classes: tuple[str, ...]
) -> tuple[list[Shots], list[str]]:
    """Return the draws for each number of shots, and a sentence for each one left out."""
    few_shot = params.evaluate.few_shot
    drawn, left_out = [], []
    present = torch.bincount(train.labels, minlength=len(classes))
    fewest = int(present.argmin())
    for count in sorted(set(few_shot.shots)):
        if present[fewest] < count:
            left_out.append(
                f"{count} labels per class were not measured: class '{classes[fewest]}' has "
                f"{int(present[fewest])} labelled images in train."
            )
            LOG.warning("few_shot: %s", left_out[-1])
            continue
        seeds = range(params.seed, params.seed + few_shot.draws)
        positions = [draw_labels(train, count, classes, seed) for seed in seeds]
        rows = [torch.searchsorted(train.positions, one) for one in positions]
        drawn.append(Shots(count, tuple(rows)))
    return drawn, left_out


def _accuracy(
    learned_from: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: int,
    device: torch.device,
) -> float:
    model = fit_logistic(*learned_from, classes, _C, device)
    return measure_scores(model.logits(test[0]), test[1]).top1


def _numbers(accuracies: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, of_arm in accuracies.items():
        suffix = suffix_of(name)
        for shots, values in of_arm.items():
            key = f"accuracy_{shots}{suffix}"
            numbers[key], numbers[f"{key}_std"] = mean_and_std(values)
    return numbers


def _comparisons(
    drawn: list[Shots], accuracies: dict[str, dict[str, list[float]]], images: int
) -> list[Compared]:
    return [
        one
        for shots in drawn
        for one in compared(
            f"Few-shot, {shots.in_words}",
            {name: of_arm[shots.name] for name, of_arm in accuracies.items()},
            images,
            paired=True,
        )
    ]


def _described(values: list[float]) -> dict[str, Any]:
    mean, deviation = mean_and_std(values)
    return {
        "mean": mean,
        "std": deviation,
        "interval": interval_over_seeds(values),
        "accuracies": values,
    }
