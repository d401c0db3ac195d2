"""Test-time training: what an encoder gains from learning on each test image before it answers.

The classifier is logistic regression on frozen features of clean training images. Accuracy with
and without adaptation is of the same images, so a change is judged by McNemar's test.
"""

import csv
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.data.dataset import read_dataset_info
from mae.errors import DivergedError
from mae.evaluation.adaptation import Adaptation, Weights
from mae.evaluation.arms import frozen_arm
from mae.evaluation.corruptions import corrupt
from mae.evaluation.features import check_encoder_fits
from mae.evaluation.labelled import LabelledSplit, train_and_test, why_not_classifiable
from mae.evaluation.logistic import LinearModel
from mae.evaluation.outcome import Compared, Outcome
from mae.evaluation.robustness import Condition, View, learn_classifier
from mae.files import replacing_file
from mae.model.artifact import load_autoencoder, load_encoder
from mae.model.autoencoder import Autoencoder
from mae.params import Params
from mae.params.evaluation import TestTimeParams
from mae.training.devices import Place

PROTOCOL = "test_time"


@dataclass(frozen=True)
class Adapted:
    """Whether each image was recognised, bool (n,), by the frozen encoder and by its adapted copy.

    losses float32 (steps, n): of reconstruction, before each step.
    """

    frozen: Tensor
    adapted: Tensor
    losses: Tensor

    @property
    def accuracy(self) -> float:
        return float(self.adapted.double().mean())

    @property
    def accuracy_frozen(self) -> float:
        return float(self.frozen.double().mean())

    def to_dict(self) -> dict[str, Any]:
        gained, lost = (
            int((self.adapted & ~self.frozen).sum()),
            int((self.frozen & ~self.adapted).sum()),
        )
        return {
            "accuracy": self.accuracy,
            "accuracy_frozen": self.accuracy_frozen,
            "gained": gained,
            "lost": lost,
            "p_value": mcnemar(gained, lost),
            "losses": self.losses.double().mean(dim=1).tolist(),
        }


def run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome:
    """Measure accuracy with and without adaptation on clean images and under each corruption.

    Raises DataError for an encoder that does not fit the data, for a class that train lacks and
    for a split without labels, DivergedError where adaptation does.
    """
    info = read_dataset_info(shards)
    artifact = load_encoder(pretrained)
    reason = why_not_classifiable(info) or why_not_adaptable(artifact.info)
    if reason is not None:
        return Outcome(PROTOCOL, skipped=reason)
    check_encoder_fits(artifact, info)
    wanted = params.evaluate.test_time
    train, test = train_and_test(shards)
    measured = test.evenly_spread(wanted.images)
    arm = frozen_arm("pretrained", artifact)
    classifier = learn_classifier(arm, train, wanted.feature, params, place)
    whole = load_autoencoder(pretrained)
    assert isinstance(whole.autoencoder, Autoencoder)
    adaptation = Adaptation(whole.autoencoder, whole.statistics, wanted, params.seed, place.device)
    stream = ImageStream(
        measured, View(arm.height, arm.width, arm.resize), params.seed, params.runtime.workers
    )
    corrupted = [Condition(name, wanted.severity) for name in dict.fromkeys(wanted.corruptions)]
    conditions: list[Condition | None] = [*corrupted, None]
    found = {
        "clean" if condition is None else condition.corruption: measure_adaptation(
            adaptation, classifier.model, stream, condition, wanted, place
        )
        for condition in conditions
    }
    if place.leads:
        write_table(found, pictures / "test_time.csv")
    return Outcome(
        PROTOCOL,
        numbers=_numbers(found),
        comparisons=_comparisons(found, wanted, len(measured)),
        detail={
            "images": {"train": len(train), "test": len(measured)},
            "feature": wanted.feature,
            "c": classifier.c,
            "precision": adaptation.precision,
            "views": adaptation.views,
            "conditions": {name: result.to_dict() for name, result in found.items()},
        },
    )


def why_not_adaptable(info: dict[str, Any]) -> str | None:
    """Return a sentence on why an encoder of this description cannot learn from a test image by
    reconstructing it, or None."""
    if "autoencoder" not in info:
        return (
            "the encoder came without a decoder, so there is nothing to reconstruct a test image "
            "with: pretrain here, or import weights that have one"
        )
    method = info["autoencoder"].get("params", {}).get("method", "mae")
    if method in ("supervised", "convolutional"):
        return f"the encoder was pretrained with method {method}, which hides no patches to predict"
    return None


@dataclass(frozen=True)
class ImageStream:
    """Test images in order, as often as asked for, clean or corrupted."""

    split: LabelledSplit
    view: View
    seed: int
    workers: int

    def pieces(
        self, condition: Condition | None, length: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows int64 (n,) of the split with their stored images and ids, n <= length."""
        start = 0
        for batch in self.view.batches(self.split, self.workers, rank=0, world=1):
            images = batch.images
            if condition is not None:
                images = corrupt(images, batch.ids, *condition, self.seed)
            rows = torch.arange(start, start + len(batch))
            yield from zip(
                rows.split(length), images.split(length), batch.ids.split(length), strict=True
            )
            start += len(batch)


def measure_adaptation(
    adaptation: Adaptation,
    head: LinearModel,
    stream: ImageStream,
    condition: Condition | None,
    wanted: TestTimeParams,
    place: Place,
) -> Adapted:
    """Classify each image before and after adapting to it.

    Processes share the images and get the same result. Online, one set of weights goes through
    all images, in their order, which every process then follows by itself.
    """
    count, share = len(stream.split), Place(place.device) if wanted.online else place
    answers = torch.zeros(2, count, dtype=torch.int64, device=place.device)
    losses = torch.zeros(adaptation.steps, count, device=place.device)
    carried = adaptation.pretrained(1)

    def answer(weights: Weights, images: Tensor) -> Tensor:
        """Return a class for each image, -1 where the weights are past all numbers."""
        logits = head.logits(adaptation.features(weights, images))
        return torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), -1)

    pieces = stream.pieces(condition, 1 if wanted.online else adaptation.at_once)
    for number, (rows, images, ids) in enumerate(pieces):
        if number % share.world_size != share.rank:
            continue
        fresh = adaptation.pretrained(len(rows))
        answers[0, rows] = answer(fresh, images)
        weights = carried if wanted.online else fresh
        losses[:, rows] = adaptation.adapt(weights, images, ids)
        answers[1, rows] = answer(weights, images)
    answers, losses = share.sum(answers).cpu(), share.sum(losses).cpu()
    if (answers < 0).any() or not losses.isfinite().all():
        raise DivergedError(
            "adapting to a test image diverged (its weights or its reconstruction loss are not "
            f"finite): lower evaluate.test_time.lr, which is {wanted.lr:g}"
        )
    frozen, adapted = answers == stream.split.labels
    return Adapted(frozen, adapted, losses)


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: how likely a change this lopsided is
    when gains and losses have equal chances."""
    from scipy.special import bdtr  # the binomial distribution function

    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def _numbers(found: dict[str, Adapted]) -> dict[str, float]:
    """accuracy: with adaptation, the mean over corruptions; `_frozen`: without."""
    corrupted = [result for name, result in found.items() if name != "clean"]
    numbers = {
        "accuracy": statistics.fmean(result.accuracy for result in corrupted),
        "accuracy_frozen": statistics.fmean(result.accuracy_frozen for result in corrupted),
    }
    for name, result in found.items():
        numbers[f"accuracy_{name}"] = result.accuracy
        numbers[f"accuracy_{name}_frozen"] = result.accuracy_frozen
    return numbers


def _comparisons(
    found: dict[str, Adapted], wanted: TestTimeParams, images: int
) -> tuple[Compared, ...]:
    how = "online test-time training" if wanted.online else "test-time training"
    return tuple(
        Compared(
            task=f"{how.capitalize()}, "
            + ("clean images" if name == "clean" else f"{name} of severity {wanted.severity}"),
            metric="top-1 accuracy",
            pretrained=(result.accuracy,),
            baseline="the encoder as pretrained",
            values=(result.accuracy_frozen,),
            paired=True,
            images=images,
        )
        for name, result in found.items()
    )


def write_table(found: dict[str, Adapted], path: Path) -> None:
    """Write a CSV file with the reconstruction loss by step under each condition."""
    with (
        replacing_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["condition", "step", "loss"])
        for name, result in found.items():
            losses = result.to_dict()["losses"]
            writer.writerows([name, step, loss] for step, loss in enumerate(losses))
