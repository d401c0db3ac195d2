"""Accuracy on corrupted images of classifiers that learned on clean ones (arXiv 1903.12261)."""

import csv
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mae.data.loading.batch import Batch
from mae.data.loading.evaluation import evaluation_batches
from mae.evaluation.arms import frozen_arms, words
from mae.evaluation.corruptions import corrupt
from mae.evaluation.drawing import colours_of, write_png
from mae.evaluation.features import Embedder, FrozenArm, select
from mae.evaluation.labelled import LabelledSplit
from mae.evaluation.logistic import LinearModel
from mae.evaluation.opening import open_labelled
from mae.evaluation.outcome import Outcome, compared, suffix_of
from mae.evaluation.probe import learn_probe
from mae.evaluation.scores import Scores, measure_predicted
from mae.files import replacing_file
from mae.params import FrozenFeature, Params
from mae.params.evaluation import Corruption, RobustnessParams
from mae.training.devices import Place

PROTOCOL = "robustness"

Classifier = Callable[[Tensor], Tensor]
"""Stored images, uint8 or uint16 (N, C, H, W) -> logits (N, K)."""

_BATCH = 64  # images; every process takes some of the batches


class Condition(NamedTuple):
    """What is done to the images."""

    corruption: Corruption
    severity: int


@dataclass(frozen=True)
class View:
    """The part of an image that a classifier is shown: `resize` x (height, width) is covered, the
    centre cut out."""

    height: int
    width: int
    resize: float

    def batches(self, split: LabelledSplit, workers: int, rank: int, world: int) -> Iterator[Batch]:
        """Yield every `world`-th batch of the split, from the `rank`-th on."""
        mine = split.positions.split(_BATCH)[rank::world]
        if not mine:
            return iter(())
        return iter(
            evaluation_batches(
                split.reader, self, workers=workers, batch=_BATCH, positions=torch.cat(mine)
            )
        )


@dataclass(frozen=True)
class Robustness:
    """Scores on the clean images and under each condition."""

    clean: Scores
    corrupted: dict[Condition, Scores]

    def of(self, corruption: Corruption) -> float:
        """Return the mean top-1 accuracy over the severities of a corruption."""
        scores = [value for key, value in self.corrupted.items() if key.corruption == corruption]
        return statistics.fmean(score.top1 for score in scores)

    @property
    def corruptions(self) -> tuple[Corruption, ...]:
        return tuple(dict.fromkeys(condition.corruption for condition in self.corrupted))

    @property
    def mean(self) -> float:
        """The mean top-1 accuracy over corruptions, all counting alike."""
        return statistics.fmean(self.of(corruption) for corruption in self.corruptions)

    def numbers(self, suffix: str) -> dict[str, float]:
        """relative_drop: the share of the clean accuracy that corruption takes."""
        values = {"accuracy": self.clean.top1, "accuracy_corrupted": self.mean}
        values |= {f"accuracy_{name}": self.of(name) for name in self.corruptions}
        if self.clean.top1:
            values["relative_drop"] = 1 - self.mean / self.clean.top1
        return {f"{name}{suffix}": value for name, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        table: dict[str, Any] = {name: {} for name in self.corruptions}
        for (corruption, severity), scores in self.corrupted.items():
            table[corruption][str(severity)] = scores.top1
        return {"clean": self.clean.top1, "severities": table}


@dataclass(frozen=True)
class FrozenClassifier:
    """Logistic regression on a feature of a frozen arm; c: its inverse regularisation."""

    embedder: Embedder
    arm: FrozenArm
    feature: FrozenFeature
    model: LinearModel
    c: float

    def __call__(self, images: Tensor) -> Tensor:
        return self.model.logits(select(self.embedder(images), self.arm, self.feature))


def run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome:
    """Measure the pretrained encoder beside its baselines, each with a classifier of its own.

    Raises DataError for an encoder that does not fit the data, for a class that train lacks and
    for a split without labels.
    """
    opened = open_labelled(shards, pretrained)
    if isinstance(opened, str):
        return Outcome(PROTOCOL, skipped=opened)
    _, artifact, train, test = opened
    wanted = params.evaluate.robustness
    measured = test.evenly_spread(wanted.images)
    found, cs = {}, {}
    for name, arm in frozen_arms(params, artifact, pixels=True).items():
        classifier = learn_classifier(arm, train, wanted.feature, params, place)
        view = View(arm.height, arm.width, arm.resize)
        cs[name] = classifier.c
        found[name] = measure_under_corruptions(
            classifier, measured, view, wanted, params.seed, params.runtime.workers, place
        )
    if place.leads:
        write_table(found, pictures / "robustness.csv")
        draw(found, pictures / "robustness.png")
    numbers = [result.numbers(suffix_of(name)) for name, result in found.items()]
    return Outcome(
        PROTOCOL,
        numbers={key: value for part in numbers for key, value in part.items()},
        comparisons=compared(
            "Corrupted images, classifier learned on clean ones",
            {name: [result.mean] for name, result in found.items()},
            len(measured),
            metric="mean top-1 accuracy",
            paired=True,
        ),
        detail={
            "images": {"train": len(train), "test": len(measured)},
            "feature": wanted.feature,
            "c": cs,
            "accuracy": {name: result.to_dict() for name, result in found.items()},
        },
    )


def learn_classifier(
    arm: FrozenArm, train: LabelledSplit, feature: FrozenFeature, params: Params, place: Place
) -> FrozenClassifier:
    """Return logistic regression on all of train, its C the one that did best on minival."""
    probe = learn_probe(arm, train, feature, params, place)
    return FrozenClassifier(Embedder(arm, place.device), arm, feature, probe.model, probe.c)


def measure_under_corruptions(
    classifier: Classifier,
    split: LabelledSplit,
    view: View,
    wanted: RobustnessParams,
    seed: int,
    workers: int,
    place: Place,
) -> Robustness:
    """Score a classifier on the images of a split, clean and under every wanted condition.

    All processes share the images and get the same result. workers: decoding threads.
    """
    conditions = [
        Condition(corruption, severity)
        for corruption in dict.fromkeys(wanted.corruptions)
        for severity in sorted(set(wanted.severities))
    ]
    predicted = torch.zeros(len(conditions) + 1, len(split), dtype=torch.int64, device=place.device)
    mine = torch.arange(len(split)).split(_BATCH)[place.rank :: place.world_size]
    batches = view.batches(split, workers, place.rank, place.world_size)
    for rows, batch in zip(mine, batches, strict=True):
        predicted[0, rows] = classifier(batch.images).argmax(dim=1).to(place.device)
        for at, (corruption, severity) in enumerate(conditions, start=1):
            images = corrupt(batch.images, batch.ids, corruption, severity, seed)
            predicted[at, rows] = classifier(images).argmax(dim=1).to(place.device)
    answers = place.sum(predicted).cpu()
    classes = len(split.reader.info.classes)
    clean, *corrupted = (measure_predicted(row, split.labels, classes) for row in answers)
    return Robustness(clean, dict(zip(conditions, corrupted, strict=True)))


def write_table(found: dict[str, Robustness], path: Path) -> None:
    """Write a CSV file with a row for each encoder, corruption and severity; clean is 0."""
    with (
        replacing_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["encoder", "corruption", "severity", "accuracy", "balanced_accuracy"])
        for name, result in found.items():
            writer.writerow([name, "clean", 0, result.clean.top1, result.clean.balanced])
            writer.writerows(
                [name, *condition, scores.top1, scores.balanced]
                for condition, scores in result.corrupted.items()
            )


def draw(found: dict[str, Robustness], path: Path) -> None:
    """Draw accuracy by severity to a PNG: a panel for each corruption, a line for each encoder."""
    from matplotlib.figure import Figure

    corruptions = found["pretrained"].corruptions
    colours = colours_of(found)
    figure = Figure(figsize=(2.6 * len(corruptions) + 0.8, 2.9), layout="constrained")
    panels = figure.subplots(1, len(corruptions), sharey=True, squeeze=False)[0]
    for panel, corruption in zip(panels, corruptions, strict=True):
        for name, result in found.items():
            by_severity = {0: result.clean.top1} | {
                key.severity: scores.top1
                for key, scores in result.corrupted.items()
                if key.corruption == corruption
            }
            width = 2.2 if name == "pretrained" else 1.2
            panel.plot(
                list(by_severity),
                list(by_severity.values()),
                marker="o",
                markersize=3,
                linewidth=width,
                color=colours[name],
                label=words(name),
            )
        panel.set_title(corruption)
        panel.set_xlabel("severity (0: clean)")
        panel.set_ylim(0, 1)
        panel.grid(axis="y", linewidth=0.5, alpha=0.5)
    panels[0].set_ylabel("top-1 accuracy")
    panels[-1].legend(fontsize=8)
    write_png(figure, path, dpi=110)
