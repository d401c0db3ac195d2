"""k nearest neighbours on frozen features: what an encoder knows without learning anything more.

The protocol of InstDisc (arXiv 1805.01978, section 3.4) and DINO: cosine similarity s, each of
the k nearest training images votes for its class with weight exp(s / temperature). k is the one
best on a slice of train; test is read once, with that k and all of train.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.errors import DataError
from mae.evaluation.arms import frozen_arms
from mae.evaluation.feature_cache import features_of
from mae.evaluation.labelled import LabelledSplit
from mae.evaluation.minival import minival_rows
from mae.evaluation.neighbours import Bank, knn_votes
from mae.evaluation.opening import open_labelled
from mae.evaluation.outcome import Outcome, compared
from mae.evaluation.published import expected
from mae.evaluation.scores import Scores, measure_scores
from mae.params import KnnParams, Params
from mae.training.devices import Place

PROTOCOL = "knn"


@dataclass(frozen=True)
class KnnResult:
    """Scores on test with the k that did best on minival; minival_accuracy of each k tried, none
    where there was no choice."""

    k: int
    scores: Scores
    minival_accuracy: dict[int, float]

    def to_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        by_k = {str(k): value for k, value in self.minival_accuracy.items()}
        return {"k": self.k, "minival_accuracy": by_k, **self.scores.to_dict(classes)}


def run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome:
    """Measure the pretrained encoder beside a random one of its shape, the baselines that the
    user names and the raw pixels.

    Raises DataError for an encoder that does not fit the data, for a class that train lacks, for
    a split without labels, and where train has fewer images than every k.
    """
    opened = open_labelled(shards, pretrained)
    if isinstance(opened, str):
        return Outcome(PROTOCOL, skipped=opened)
    info, artifact, train, test = opened
    knn, classes = params.evaluate.knn, len(info.classes)
    neighbours = choices(knn, train, params)
    results = {}
    for name, arm in frozen_arms(params, artifact, pixels=True).items():
        train_vectors, test_vectors = (
            features_of(arm, split, knn.feature, params, place) for split in (train, test)
        )
        results[name] = choose_and_test(
            Bank(train_vectors, train.labels, classes),
            (test_vectors, test.labels),
            neighbours,
            knn.temperature,
            place.device,
        )
    ours = results["pretrained"]
    return Outcome(
        PROTOCOL,
        numbers={
            **{
                f"accuracy_{name}": result.scores.top1
                for name, result in results.items()
                if name != "pretrained"
            },
            **ours.scores.numbers(),
            "k": ours.k,
        },
        comparisons=compared(
            "k nearest neighbours",
            {name: [result.scores.top1] for name, result in results.items()},
            len(test),
        ),
        detail={
            **{name: result.to_dict(info.classes) for name, result in results.items()},
            "images": {split.name: len(split) for split in (train, test)},
            "left_out": neighbours.left_out,
        },
        expected=expected(PROTOCOL, artifact.info, info, params),
    )


@dataclass(frozen=True)
class Choices:
    """The k to choose from, ascending, and the rows of train that they are chosen on.

    minival: None where there is one k. left_out: a sentence on those that are too large.
    """

    ks: tuple[int, ...]
    minival: Tensor | None = None
    left_out: str | None = None


def choices(knn: KnnParams, train: LabelledSplit, params: Params) -> Choices:
    """Return the k that train has enough images for. Raises DataError when that is none."""
    ks = tuple(sorted(set(knn.k)))
    if ks[0] > len(train):
        raise DataError(
            f"evaluate.knn.k asks for {ks[0]} neighbours at least and train has {len(train)} "
            "labelled images: take a smaller k, or add images"
        )
    if len(ks) == 1:
        return Choices(ks)
    fit, minival = minival_rows(train, params.evaluate.minival, params.seed)
    possible = tuple(k for k in ks if k <= len(fit))
    if len(possible) == len(ks):
        return Choices(ks, minival)
    left_out = (
        f"k of {', '.join(str(k) for k in ks if k not in possible)} left out: there are "
        f"{len(fit)} images to choose neighbours from"
    )
    if len(possible) < 2:
        return Choices(possible or ks[:1], left_out=left_out)
    return Choices(possible, minival, left_out)


def choose_and_test(
    bank: Bank,
    test: tuple[Tensor, Tensor],
    neighbours: Choices,
    temperature: float,
    device: torch.device,
) -> KnnResult:
    """Choose k on minival (the smallest of equals), then read test (features, labels) once."""
    k, tried = neighbours.ks[0], {}
    if neighbours.minival is not None:
        minival = neighbours.minival
        rest = replace(bank, without=minival)
        votes = knn_votes(rest, bank.vectors[minival], neighbours.ks, temperature, device)
        labels = bank.labels[minival]
        tried = {one: _measure(votes[one], labels).top1 for one in neighbours.ks}
        k = max(tried, key=lambda one: tried[one])
    votes = knn_votes(bank, test[0], [k], temperature, device)
    return KnnResult(k, _measure(votes[k], test[1]), tried)


def _measure(votes: Tensor, labels: Tensor) -> Scores:
    return measure_scores(votes.log(), labels)
