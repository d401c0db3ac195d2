"""Linear classifiers on frozen features: multinomial logistic regression and a linear SVM.

Both are solved to their minimum, so no rate or number of epochs has to be chosen; regularisation
is, on a slice of train. Then each learns from all of train, and test is read once. This is the
quick protocol; the paper's linear probe (linear_probe.py) learns with LARS.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.evaluation.arms import frozen_arms
from mae.evaluation.feature_cache import features_of
from mae.evaluation.logistic import fit_logistic
from mae.evaluation.minival import best_along, minival_rows
from mae.evaluation.opening import open_labelled
from mae.evaluation.outcome import Compared, Outcome, compared
from mae.evaluation.scores import Scores, measure_predicted, measure_scores
from mae.params import Params
from mae.training.devices import Place

PROTOCOL = "linear"

Labelled = tuple[Tensor, Tensor]
"""Features float32 (n, D) and labels int64 (n,)."""

Classifier = Callable[[Labelled, Labelled, int, float], Scores]
"""Learns from the first with so many classes and c, and is measured on the second."""

_TASKS = {"logistic": "Logistic regression", "svm": "Linear SVM"}
_LEFT_OUT = "pixels"  # of the SVM
_WHY_LEFT_OUT = (
    "the SVM of the raw pixels is left out: so many columns, so much alike, take it longer than "
    "all others together, and the logistic regression of the pixels says the same"
)
_SUFFIXES = {"logistic": "", "svm": "_svm"}


@dataclass(frozen=True)
class LinearResult:
    """Scores on test with the c that did best on minival; minival_accuracy of each c tried, none
    where there was no choice."""

    c: float
    scores: Scores
    minival_accuracy: dict[float, float]

    def to_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        by_c = {f"{c:g}": value for c, value in self.minival_accuracy.items()}
        return {"c": self.c, "minival_accuracy": by_c, **self.scores.to_dict(classes)}


def run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome:
    """Measure both classifiers on the pretrained encoder beside a random one of its shape, the
    baselines that the user names and the raw pixels.

    Raises DataError for an encoder that does not fit the data, for a class that train lacks and
    for a split without labels.
    """
    opened = open_labelled(shards, pretrained)
    if isinstance(opened, str):
        return Outcome(PROTOCOL, skipped=opened)
    info, artifact, train, test = opened
    linear = params.evaluate.linear
    grids = {"logistic": linear.logistic_c, "svm": linear.svm_c}
    rows = None
    if any(len(set(grid)) > 1 for grid in grids.values()):
        rows = minival_rows(train, params.evaluate.minival, params.seed)
    features = {
        name: [
            (features_of(arm, split, linear.feature, params, place), split.labels)
            for split in (train, test)
        ]
        for name, arm in frozen_arms(params, artifact, pixels=True).items()
    }

    def result(classifier: str, name: str) -> LinearResult:
        learn = classifiers(place.device)[classifier]
        known, unknown = features[name]
        return choose_and_test(learn, known, unknown, len(info.classes), grids[classifier], rows)

    with ThreadPoolExecutor(1) as beside:  # a core of its own: the SVM's solver holds no lock
        svms = {name: beside.submit(result, "svm", name) for name in features if name != _LEFT_OUT}
        logistic = {name: result("logistic", name) for name in features}
    results = {"logistic": logistic, "svm": {name: job.result() for name, job in svms.items()}}
    return Outcome(
        PROTOCOL,
        numbers=_numbers(results),
        comparisons=_comparisons(results, len(test)),
        detail={
            **{
                classifier: {name: one.to_dict(info.classes) for name, one in by_arm.items()}
                for classifier, by_arm in results.items()
            },
            "images": {split.name: len(split) for split in (train, test)},
            "left_out": _WHY_LEFT_OUT,
        },
    )


def choose_and_test(
    learn: Classifier,
    train: Labelled,
    test: Labelled,
    classes: int,
    cs: tuple[float, ...],
    rows: tuple[Tensor, Tensor] | None,
) -> LinearResult:
    """Choose c on minival (the smallest of equals), then learn from all of train and read test.

    rows: of train, to learn from and to choose on; None where there is one c.
    """
    if rows is None:
        return LinearResult(cs[0], learn(train, test, classes, cs[0]), {})
    fit, minival = ((train[0][some], train[1][some]) for some in rows)
    c, tried = best_along(cs, lambda c: learn(fit, minival, classes, c).top1)
    return LinearResult(c, learn(train, test, classes, c), tried)


def classifiers(device: torch.device) -> dict[str, Classifier]:
    def logistic(train: Labelled, test: Labelled, classes: int, c: float) -> Scores:
        return measure_scores(fit_logistic(*train, classes, c, device).logits(test[0]), test[1])

    return {"logistic": logistic, "svm": _svm}


def _svm(train: Labelled, test: Labelled, classes: int, c: float) -> Scores:
    """One class against the rest, squared hinge; its margins are no probabilities."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    # random_state: of the coordinate descent that is used with fewer images than features.
    machine = make_pipeline(StandardScaler(), LinearSVC(C=c, random_state=0, max_iter=10_000))
    machine.fit(train[0].double().numpy(), train[1].numpy())
    predicted = machine.predict(test[0].double().numpy())
    return measure_predicted(torch.from_numpy(predicted), test[1], classes)


def _numbers(results: dict[str, dict[str, LinearResult]]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for classifier, suffix in _SUFFIXES.items():
        for name, result in results[classifier].items():
            if name == "pretrained":
                numbers |= result.scores.numbers(suffix)
            else:
                numbers[f"accuracy{suffix}_{name}"] = result.scores.top1
    return numbers


def _comparisons(results: dict[str, dict[str, LinearResult]], images: int) -> tuple[Compared, ...]:
    return tuple(
        one
        for classifier, by_arm in results.items()
        for one in compared(
            _TASKS[classifier],
            {name: [result.scores.top1] for name, result in by_arm.items()},
            images,
        )
    )
